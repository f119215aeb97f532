"""Check before weights load that each token of a run has an embedding, and each row of tokens has positions.

A token or position beyond the model's ends in an index error, or on a GPU in an assertion that names nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.callbacks.best_of_n import BestOfN
from caldpo.callbacks.callback_base import PromptSampling
from caldpo.callbacks.true_reward import OracleEvaluation
from caldpo.data.datamodule import PairDataModule
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError
from caldpo.models.adapted_policy import base_model
from caldpo.models.hub_model import causal_lm_skeleton, read_vocabulary
from caldpo.models.model_source import ModelSource
from caldpo.models.position_limit import position_limit
from caldpo.reference.reference_base import ReferenceSource
from caldpo.reference.reference_load import check_tokens
from caldpo.rollouts.rollout_base import NoRollouts
from caldpo.rollouts.sampled_pairs import SampledPairs
from caldpo.utils.notes import print_notes

_PADDING = 0.05  # of an embedding may be rows that no token has: they are rounded up to a multiple of 64 or more


def check_fit(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    data: PairDataModule,
    *,
    reference: ReferenceSource | None,
    model_section: Mapping[str, Any],
    callbacks: Mapping[str, pl.Callback] | None = None,
    rollouts: NoRollouts | None = None,
) -> None:
    """Compare the tokenised pairs of a run, and the samples that it will draw, with its models' sizes.

    Args:
        source: of the policy.
        tokenizer: of the run.
        data: prepared.
        reference: of the run, which may be another model than the policy's start.
        model_section: section ``model`` of the configuration.
        callbacks: of the run.
        rollouts: of the run.

    Raises:
        CaldpoError: token ids beyond an embedding, or rows beyond a model's positions, with both numbers; a reference
            with another tokenizer.
    """
    if reference is not None and reference.path is not None:
        check_tokens(tokenizer, read_vocabulary(reference.path, key="reference.path"), reference.path)
    policy = skeleton_of(source)
    if policy is None:
        print_notes(
            ["this model cannot be made without its weights, so that token ids and lengths are not checked first"]
        )
        return
    key = "model.path" if model_section.get("tokenizer") is None else "model.tokenizer"
    _require_embedded(policy, tokenizer, data, key)
    _require_positions(policy, data)
    for name, callback in (callbacks or {}).items():
        if isinstance(callback, OracleEvaluation | BestOfN) and data.oracle is None:
            continue
        if isinstance(callback, PromptSampling) and callback.prompts:
            longest = max(len(prompt.prompt_ids) for prompt in data.held_out_prompts(callback.prompts))
            _require_room(policy, longest, callback.max_new_tokens, key=f"callbacks.{name}.max_new_tokens")
    if isinstance(rollouts, SampledPairs):
        longest = int(data.train_pairs.lengths()[:, 0].max())
        _require_room(policy, longest, rollouts.max_new_tokens, key="rollouts.max_new_tokens")
    if reference is not None and reference.path is not None:
        with torch.device("meta"):
            other = causal_lm_skeleton(reference.path, key="reference.path")
        _require_embedded(other, tokenizer, data, "reference.path")
        _require_positions(other, data)
    rows, known = _embedding_rows(policy), len(tokenizer)
    if not (1 - _PADDING) * rows - 1024 <= known <= rows:
        print_notes(
            [
                f"the tokenizer knows {known:,} tokens, and the embedding has {rows:,} rows: is it this model's?"
                " (model.tokenizer)"
            ]
        )


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


def require_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], more: int
) -> None:
    """Refuse prompts, as token ids, that a model cannot be sampled from for ``more`` tokens.

    Raises:
        CaldpoError: naming ``model.tokenizer`` or ``max_new_tokens``.
    """
    used = [("a prompt holds", max((token for prompt in prompts for token in prompt), default=0))]
    _require_rows(base_model(model), tokenizer, used, "model.tokenizer")
    _require_room(base_model(model), max(map(len, prompts), default=0), more, key="max_new_tokens")


def require_pairs_fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenizedPair]
) -> None:
    """Refuse pairs, one at least, that a model has no embeddings or positions for.

    Raises:
        CaldpoError: naming ``tokenizer`` or ``max_length``.
    """
    used = [(f"{p.origin} holds", max((*p.prompt_ids, *p.chosen_ids, *p.rejected_ids))) for p in pairs]
    _require_rows(base_model(model), tokenizer, [max(used, key=lambda place: place[1])], "tokenizer")
    rows = [len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    limit = position_limit(base_model(model), max(rows))
    if limit is not None:
        raise CaldpoError(
            f"{pairs[int(np.argmax(rows))].origin} is {max(rows):,} tokens long, and {type(model).__name__} has"
            f" positions for {limit:,}",
            key="max_length",
            remedy=f"give max_length={limit}, which shortens longer pairs, or another model",
        )


def _require_embedded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: PairDataModule, key: str
) -> None:
    """Refuse token ids of pairs that the model's embedding has no row for: the largest of each split."""
    largest = []
    for pairs in (data.train_pairs, data.test_pairs):
        tokens, ends = pairs.arrays()
        if len(tokens):
            place = int(tokens.argmax())
            origin = pairs.origin(int(np.searchsorted(ends, place, side="right") - 1) // 3)
            largest.append((f"{origin} holds", int(tokens[place])))
    if data.stream is not None:  # its later pairs may hold any token
        largest.append(("the last of its tokens is", max(tokenizer.get_vocab().values())))
    _require_rows(model, tokenizer, largest, key)


def _require_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, used: list[tuple[str, int]], key: str
) -> None:
    """Compare tokens, and those that end and pad rows, with the embedding; ``used``: places and ids."""
    rows = _embedding_rows(model)
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


def _require_positions(model: PreTrainedModel, data: PairDataModule) -> None:
    """Refuse rows with more tokens than the model has positions: a prompt with the longer of its responses."""
    tokens, place = 0, ""
    for pairs in (data.train_pairs, data.test_pairs):
        lengths = pairs.lengths()
        rows = lengths[:, 0] + lengths[:, 1:].max(axis=1)
        if len(rows) and rows.max() > tokens:
            tokens, place = int(rows.max()), f"{pairs.origin(int(rows.argmax()))} is"
    if data.stream is not None and tokens < data.max_length:
        tokens, place = data.max_length, "a later pair of the stream may be"
    limit = position_limit(model, tokens)
    if limit is not None:
        raise CaldpoError(
            f"{place} {tokens:,} tokens long, and {type(model).__name__} has positions for {limit:,}",
            key="data.max_length",
            value=data.max_length,
            remedy=f"set data.max_length={limit} and data.max_prompt_length={limit // 2}, which shorten longer pairs,"
            " or take a model with more positions",
        )


def _require_room(model: PreTrainedModel, prompt: int, more: int, *, key: str) -> None:
    """Refuse samples of ``more`` tokens, set by ``key``, after ``prompt`` tokens, that go beyond the positions."""
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


def _embedding_rows(model: PreTrainedModel) -> int:
    try:
        return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    except (NotImplementedError, AttributeError):  # no matrix, but a table of its own
        return int(model.config.get_text_config().vocab_size)
