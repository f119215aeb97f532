"""Collate tokenised pairs into one batch, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from caldpo.data.pair import TokenizedPair
from caldpo.types import PairBatch

Layout = Literal["packed", "padded"]


def collate(
    pairs: Sequence[TokenizedPair],
    pad_id: int,
    *,
    layout: Layout = "padded",
    split: str = "",
    weight: Sequence[float] | None = None,
    step_pairs: int | None = None,
    with_scores: bool | None = None,
    places: Sequence[int] = (),
) -> PairBatch:
    """Collate pairs.

    Args:
        pairs: at least one; prompts and responses have at least one token each.
        pad_id: fills the padding; any token will do, since a batch lists which positions predict which tokens.
        layout: ``padded``: all chosen, then all rejected responses, each after its prompt, padded on the right to
            the longest; ``packed``: one row of prompt, chosen, rejected of each pair, without padding.
        weight: 1 for a real pair, 0 for filler; default: all real.
        step_pairs: real pairs of the optimiser step the batch belongs to; default: those of this batch for each
            micro-batch of the step.
        with_scores: whether the whole split has scores; default: whether these pairs do. An absent response has 0.
        places: of the pairs in the optimiser step, where a loss reads all of it.
    """
    rows = _packed(pairs) if layout == "packed" else _padded(pairs, pad_id)
    if weight is None:
        weight = [1.0] * len(pairs)
    if with_scores is None:
        with_scores = all(p.scored for p in pairs)
    scores = [[0.0 if score is None else score for score in (p.score_chosen, p.score_rejected)] for p in pairs]
    present = None
    if any(p.label is not None for p in pairs):
        present = torch.tensor([[p.label is not False, p.label is not True] for p in pairs], dtype=torch.float32)
    lengths = torch.tensor([len(p.chosen_ids) for p in pairs] + [len(p.rejected_ids) for p in pairs])
    order = torch.arange(len(lengths)).view(2, -1).T.flatten()  # pair by pair: chosen 0, rejected 0, chosen 1, ...
    counts = lengths[order]
    response = order.repeat_interleave(counts)
    offsets = torch.arange(len(response)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    # The first token of a response is predicted at the end of its prompt, each other at the token before it.
    first, later = torch.tensor(rows.ends)[response], torch.tensor(rows.begins)[response] + offsets - 1
    return PairBatch(
        input_ids=rows.input_ids,
        position_ids=rows.position_ids,
        attention_mask=rows.attention_mask,
        predicts=torch.where(offsets == 0, first, later),
        targets=torch.tensor([token for p in pairs for token in (*p.chosen_ids, *p.rejected_ids)]),
        response=response,
        response_lengths=lengths,
        pair_tokens=tuple(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs),
        spans=rows.spans,
        weight=torch.tensor(weight, dtype=torch.float32),
        index=torch.tensor([pair.index for pair in pairs]),
        split=split,
        score_chosen=torch.tensor([c for c, _ in scores], dtype=torch.float32) if with_scores else None,
        score_rejected=torch.tensor([r for _, r in scores], dtype=torch.float32) if with_scores else None,
        step_pairs=step_pairs,
        filler=not any(weight),
        places=torch.tensor(places) if places else None,
        chosen_present=None if present is None else present[:, 0].contiguous(),
        rejected_present=None if present is None else present[:, 1].contiguous(),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Tokens in rows, and for each response, chosen ones first, its position in the flattened rows."""

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    ends: list[int]  # positions of the last tokens of prompts
    begins: list[int]  # positions of the first tokens of responses
    spans: tuple[tuple[int, int, int], ...] | None


def _padded(pairs: Sequence[TokenizedPair], pad_id: int) -> _Rows:
    sides = [p.chosen_ids for p in pairs], [p.rejected_ids for p in pairs]
    rows = [pair.prompt_ids + ids for side in sides for pair, ids in zip(pairs, side, strict=True)]
    length = max(map(len, rows))
    places = torch.arange(length)
    begins = [row * length + len(pair.prompt_ids) for row, pair in enumerate([*pairs, *pairs])]
    return _Rows(
        input_ids=torch.tensor([row + [pad_id] * (length - len(row)) for row in rows]),
        position_ids=places.repeat(len(rows), 1),
        attention_mask=places < torch.tensor([len(row) for row in rows])[:, None],
        ends=[begin - 1 for begin in begins],
        begins=begins,
        spans=None,
    )


def _packed(pairs: Sequence[TokenizedPair]) -> _Rows:
    spans = tuple((len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
    starts = [0, *accumulate(sum(span) for span in spans)][:-1]
    chosen = [start + prompt for start, (prompt, _, _) in zip(starts, spans, strict=True)]
    rejected = [begin + length for begin, (_, length, _) in zip(chosen, spans, strict=True)]
    ids = torch.tensor([token for p in pairs for token in (*p.prompt_ids, *p.chosen_ids, *p.rejected_ids)])
    positions = [torch.arange(p + c) for p, c, _ in spans], [torch.arange(p, p + r) for p, _, r in spans]
    return _Rows(
        input_ids=ids[None],
        position_ids=torch.cat([x for both in zip(*positions, strict=True) for x in both])[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.bool),
        ends=[begin - 1 for begin in chosen] * 2,
        begins=chosen + rejected,
        spans=spans,
    )
