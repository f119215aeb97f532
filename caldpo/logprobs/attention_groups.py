"""Attend to all responses of one length in one call, where a micro-batch has many short ones.

Each response of a packed row attends to its prompt and itself. For responses of a few dozen tokens the calls cost as
much as what they compute; those of one length, prompt included, are one batch of a single call. On the CPU values and
gradients are the same to the last bit: a batch's entries are computed apart, and a prompt's token, which stands in two
entries, has two gradients to add.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Spans = tuple[tuple[int, int, int], ...]
"""Tokens of prompt, chosen and rejected response of each pair, in the order of the row."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Causal attention of query, key and value, each ``[sequences, heads, length, size]``."""


@dataclass(frozen=True)
class LengthGroups:
    """Sequences of prompt and response, ordered by length."""

    sequences: tuple[tuple[int, int], ...]  # of each group: how many, and their length
    tokens: NDArray[np.int64]  # index in the packed row of each token of the ordered sequences
    back: NDArray[np.int64]  # index in the ordered sequences of each token of the packed row


@functools.lru_cache(maxsize=2)  # the layers of a forward pass share it
def length_groups(spans: Spans) -> LengthGroups | None:
    """Group the responses of a packed row by length; None where the groups would have fewer than two on average."""
    if len({prompt + response for prompt, *both in spans for response in both}) > len(spans):
        return None
    by_length: dict[int, list[tuple[NDArray[np.int64], int]]] = {}  # token indices, and tokens whose output is dropped
    start = 0
    for prompt, chosen, rejected in spans:
        end = start + prompt + chosen
        row = np.arange(start, end + rejected)
        by_length.setdefault(prompt + chosen, []).append((row[: prompt + chosen], 0))
        behind_prompt = np.concatenate([row[:prompt], row[prompt + chosen :]])
        by_length.setdefault(prompt + rejected, []).append((behind_prompt, prompt))
        start = end + rejected
    entries = [entry for group in by_length.values() for entry in group]
    tokens = np.concatenate([indices for indices, _ in entries])
    is_output = np.concatenate([np.arange(len(indices)) >= dropped for indices, dropped in entries])
    back = np.empty(start, dtype=np.int64)
    back[tokens[is_output]] = np.flatnonzero(is_output)
    return LengthGroups(tuple((len(group), length) for length, group in by_length.items()), tokens, back)


def attend_by_length(query: Tensor, key: Tensor, value: Tensor, groups: LengthGroups, attend: Attend) -> Tensor:
    """Attend to the prompts and responses of one packed row.

    Query, key and value ``[1, heads, tokens, size]`` give ``[1, tokens, heads, size]``.
    """
    sizes = [count * length for count, length in groups.sequences]
    ordered = [_rows(x.transpose(1, 2).flatten(2)[0], groups.tokens).split(sizes) for x in (query, key, value)]
    heads = query.shape[1]
    outputs = []
    for (count, length), pieces in zip(groups.sequences, zip(*ordered, strict=True), strict=True):
        output = attend(*(x.view(count, length, heads, -1).transpose(1, 2) for x in pieces))
        outputs.append(output.transpose(1, 2).reshape(count * length, -1))
    return _rows(torch.cat(outputs), groups.back)[None].unflatten(2, (heads, -1))


def _rows(table: Tensor, indices: NDArray[np.int64]) -> Tensor:
    """Select rows of a matrix; an embedding's gradient adds whole rows, in their order."""
    return F.embedding(torch.as_tensor(indices, device=table.device), table)
