"""Check before weights load that each token of a run has an embedding, and each row of tokens has positions.

A token or position beyond the model's ends in an index error, or on a GPU in an assertion that names nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.callbacks.callback_base import PromptSampling
from caldpo.callbacks.true_reward import OracleEvaluation
from caldpo.data.datamodule import PairDataModule
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.errors import CaldpoError
from caldpo.models.adapted_policy import base_model
from caldpo.models.hub_model import causal_lm_skeleton
from caldpo.models.model_source import ModelSource
from caldpo.models.position_limit import position_limit
from caldpo.reference.reference_base import ReferenceSource
from caldpo.utils.notes import print_notes

_PADDING = 0.05  # of an embedding may be rows that no token has: they are rounded up to a multiple of 64 or more


def check_fit(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    data: PairDataModule,
    *,
    reference: ReferenceSource | None,
    tokenizer_key: str,
    callbacks: Mapping[str, pl.Callback] | None = None,
) -> None:
    """Compare the tokenised pairs of a run, and the samples that it will draw, with its models' sizes.

    Args:
        source: of the policy.
        tokenizer: of the run.
        data: prepared.
        reference: of the run, which may be another model than the policy's start.
        tokenizer_key: that names the tokenizer, see :func:`tokenizer_key`.
        callbacks: of the run.

    Raises:
        CaldpoError: token ids beyond an embedding, or rows beyond a model's positions, with both numbers.
    """
    policy = skeleton_of(source)
    if policy is None:
        print_notes(
            ["this model cannot be made without its weights, so that token ids and lengths are not checked first"]
        )
        return
    require_embedded(policy, tokenizer, data, key=tokenizer_key)
    require_positions(policy, data)
    for name, callback in (callbacks or {}).items():
        if isinstance(callback, PromptSampling):
            _require_room_for(callback, policy, data, f"callbacks.{name}")
    if reference is not None and reference.path is not None:
        with torch.device("meta"):
            other = causal_lm_skeleton(reference.path, key="reference.path")
        require_embedded(other, tokenizer, data, key="reference.path")
        require_positions(other, data)
    note_vocabulary(policy, tokenizer)


def tokenizer_key(section: Mapping[str, Any]) -> str:
    """Return the key of the section ``model`` that names the tokenizer."""
    return "model.path" if section.get("tokenizer") is None else "model.tokenizer"


def skeleton_of(source: ModelSource) -> PreTrainedModel | None:
    """Build the model on the meta device; None where its own code needs values to be built.

    Raises:
        CaldpoError: a model of its configuration would not be loaded either.
    """
    try:
        with torch.device("meta"):
            return source.skeleton()
    except CaldpoError:
        raise
    except Exception:
        return None


def require_embedded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: PairDataModule, *, key: str
) -> None:
    """Refuse token ids of pairs that the model's embedding has no row for.

    Raises:
        CaldpoError: naming ``key``, the first such token, and where it occurs.
    """
    _require_rows(model, tokenizer, [(f"{place} holds", token) for place, token in _largest(data)], key)


def require_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], more: int
) -> None:
    """Refuse prompts that a model cannot be sampled from: :func:`require_embedded` and :func:`require_room` of them.

    Args:
        model: that samples, with or without an adapter.
        tokenizer: of the prompts.
        prompts: their token ids.
        more: tokens of the longest response.

    Raises:
        CaldpoError: naming ``model.tokenizer`` or ``max_new_tokens``.
    """
    used = [("a prompt holds", max((token for prompt in prompts for token in prompt), default=0))]
    _require_rows(base_model(model), tokenizer, used, "model.tokenizer")
    require_room(model, max(map(len, prompts), default=0), more, key="max_new_tokens")


def _require_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, used: list[tuple[str, int]], key: str
) -> None:
    """Compare tokens, and those that end and pad rows, with the embedding; ``used``: places and ids."""
    rows = _rows(model)
    special = [(f"its {name} is", getattr(tokenizer, f"{name}_id")) for name in ("eos_token", "pad_token")]
    for place, token in [*used, *special]:
        if token is None or token < rows:
            continue
        text = str(tokenizer.convert_ids_to_tokens(token))
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        written = ", which its chat template writes" if text in template else ""
        raise CaldpoError(
            f"this tokenizer goes beyond the model: {place} the token {text} with id {token:,}{written}, and the"
            f" embedding of {type(model).__name__} has {rows:,} rows (ids up to {rows - 1:,})",
            key=key,
            value=tokenizer.name_or_path,
            remedy="name the tokenizer that the model was trained with by model.tokenizer; or, if the new tokens are"
            f" meant, give the model rows for them once, by resize_token_embeddings({len(tokenizer)}) and"
            " save_pretrained of transformers, and name that folder by model.path",
        )


def require_positions(model: PreTrainedModel, data: PairDataModule) -> None:
    """Refuse rows with more tokens than the model has positions: a prompt with the longer of its responses.

    Raises:
        CaldpoError: naming ``data.max_length``.
    """
    tokens, place = _longest(data)
    limit = position_limit(model, tokens)
    if limit is not None:
        raise CaldpoError(
            f"{place} is {tokens:,} tokens long, and {type(model).__name__} has positions for {limit:,}",
            key="data.max_length",
            value=data.max_length,
            remedy=f"set data.max_length={limit} and data.max_prompt_length={limit // 2}, which shorten longer pairs,"
            " or take a model with more positions",
        )


def note_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn where a tokenizer has far fewer tokens than the embedding has rows, or more."""
    rows, known = _rows(model), len(tokenizer)
    if not (1 - _PADDING) * rows - 1024 <= known <= rows:
        print_notes(
            [
                f"the tokenizer knows {known:,} tokens, and the embedding has {rows:,} rows: is it this model's?"
                " (model.tokenizer)"
            ]
        )


def require_room(model: PreTrainedModel, prompt: int, more: int, *, key: str) -> None:
    """Refuse samples that would go beyond the model's positions.

    Args:
        model: that samples, with or without an adapter.
        prompt: tokens of the longest prompt.
        more: of the longest response.
        key: that sets it.

    Raises:
        CaldpoError: naming ``key``.
    """
    model = base_model(model)
    limit = position_limit(model, prompt + more)
    if limit is not None:
        raise CaldpoError(
            f"a prompt of {prompt:,} tokens and its sample may have {prompt + more:,} together, and"
            f" {type(model).__name__} has positions for {limit:,}",
            key=key,
            value=more,
            remedy=f"set {key}={limit - prompt} or less"
            if limit > prompt
            else f"set data.max_prompt_length below {limit}",
        )


def _require_room_for(callback: PromptSampling, model: PreTrainedModel, data: PairDataModule, key: str) -> None:
    is_used = callback.prompts and not (isinstance(callback, OracleEvaluation) and data.oracle is None)
    if is_used:
        longest = max(len(prompt.prompt_ids) for prompt in data.held_out_prompts(callback.prompts))
        require_room(model, longest, callback.max_new_tokens, key=f"{key}.max_new_tokens")


def _rows(model: PreTrainedModel) -> int:
    try:
        return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    except (NotImplementedError, AttributeError):  # no matrix, but a table of its own
        return int(model.config.get_text_config().vocab_size)


def _splits(data: PairDataModule) -> Iterable[TokenizedPairs]:
    return data.train_pairs, data.test_pairs


def _largest(data: PairDataModule) -> list[tuple[str, int]]:
    """Return the largest token id of each split, after the pair that it is of."""
    largest = []
    for pairs in _splits(data):
        tokens, ends = pairs.arrays()
        if len(tokens):
            place = int(tokens.argmax())
            largest.append((pairs.origin(int(np.searchsorted(ends, place, side="right") - 1) // 3), int(tokens[place])))
    return largest


def _longest(data: PairDataModule) -> tuple[int, str]:
    """Return the length of the longest row of both splits, and the pair that it is of."""
    most, where = 0, ""
    for pairs in _splits(data):
        lengths = pairs.lengths()
        rows = lengths[:, 0] + lengths[:, 1:].max(axis=1)
        if len(rows) and rows.max() > most:
            most, where = int(rows.max()), pairs.origin(int(rows.argmax()))
    return most, where
