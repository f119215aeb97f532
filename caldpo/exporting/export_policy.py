"""Write a policy as a Hugging Face folder: weights, tokenizer with its template, generation settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from caldpo.data.end_tokens import end_tokens, trained_ends
from caldpo.errors import CaldpoError
from caldpo.models.adapted_policy import base_model, is_adapted
from caldpo.models.dropout import checkpoint_settings
from caldpo.models.generation_settings import format_settings, valid_settings


def write_policy(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Fill a folder with a policy, or with its adapter only, in PEFT's format, and its tokenizer.

    Args:
        policy: ``use_cache`` of its configuration is switched on.
        tokenizer: of the run.
        folder: to be filled.
        weights: all of the policy's by name; None takes its own.
        max_shard_size: largest weight file; an adapter is always one.
    """
    base = base_model(policy)
    base.config.use_cache = True
    arguments: dict[str, Any] = {} if weights is None else {"state_dict": dict(weights)}
    if is_adapted(policy):
        arguments["save_embedding_layers"] = False  # PEFT would ask the hub whether the base's embeddings were resized
        arguments["selected_adapters"] = ["default"]  # a frozen one may lie beside it, which is the reference's
    else:
        arguments["max_shard_size"] = max_shard_size
    own = getattr(base, "generation_config", None)
    settings, _ = export_settings(policy, tokenizer)
    transformers.utils.logging.disable_progress_bar()
    try:
        if settings is not None:
            base.generation_config = settings
        with checkpoint_settings(base):
            policy.save_pretrained(folder, **arguments)
    finally:
        if own is not None:
            base.generation_config = own
        transformers.utils.logging.enable_progress_bar()
    tokenizer.save_pretrained(folder)


def complete_generation(
    settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int] = ()
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Return the base's generation settings with the end and padding tokens of trained responses, fit to be saved.

    Also return what transformers does not save or cannot generate with, which is left out of them. ``ends`` are further
    tokens that end a response, see :mod:`caldpo.data.end_tokens`.
    """
    values = settings.to_dict()
    own = settings.eos_token_id if isinstance(settings.eos_token_id, list | tuple) else [settings.eos_token_id]
    eos = list(dict.fromkeys([*trained_ends(tokenizer), *ends, *(token for token in own if _is_id(token))]))
    values["eos_token_id"] = eos[0] if len(eos) == 1 else eos or None
    if not _is_id(settings.pad_token_id):
        padding = tokenizer.pad_token_id
        values["pad_token_id"] = tokenizer.eos_token_id if padding is None else padding
    if not _is_id(settings.bos_token_id):
        values["bos_token_id"] = tokenizer.bos_token_id
    return valid_settings(values, saved=True)


def export_settings(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[GenerationConfig | None, dict[str, Any]]:
    """Return the generation settings of an export (None of a model without any), and what it leaves out of them."""
    own = getattr(base_model(policy), "generation_config", None)
    return (None, {}) if own is None else complete_generation(own, tokenizer, end_tokens(tokenizer, policy))


def export_notes(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Name what an export leaves out of the checkpoint's generation settings; empty where it is nothing."""
    _, gone = export_settings(policy, tokenizer)
    reason = "transformers does not save it, or cannot generate with it"
    return [f"exports have no {format_settings(gone)} in generation_config.json: {reason}"] if gone else []


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def in_dtype(policy: PreTrainedModel, name: str | None) -> PreTrainedModel:
    """Convert the policy's floating-point weights to another dtype.

    Raises:
        CaldpoError: a weight is too large for it, naming the weight.
    """
    if name is None:
        return policy
    torch.nn.Module.to(policy, dtype=getattr(torch, name))
    for weight, value in policy.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise CaldpoError(
                f"{weight} holds values that are not finite in {name}",
                key="dtype",
                value=name,
                remedy="take dtype=bfloat16, which reaches as far as float32",
            )
    return policy
