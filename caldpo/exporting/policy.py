"""Writes a policy as a Hugging Face folder: weights, tokenizer with its template, generation settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from caldpo.errors import CaldpoError
from caldpo.files import whole_folder
from caldpo.models.adapter import base_model, is_adapted
from caldpo.models.dropout import checkpoint_settings

if TYPE_CHECKING:
    from caldpo.module import PreferenceModule


def export(module: PreferenceModule, folder: Path, weights: dict[str, Tensor]) -> None:
    """The policy of a training as a Hugging Face folder, whole or not there.

    Of a policy with an adapter the adapter alone, in PEFT's format, which names its base.
    """
    with whole_folder(folder) as draft:
        write_policy(module.policy, module.tokenizer, draft, weights=weights)


def write_policy(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Fill a folder with a policy, or with its adapter alone, and its tokenizer.

    Args:
        policy: its configuration and generation settings are made fit to be used.
        tokenizer: of the run; it says where a response ends.
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
    if getattr(base, "generation_config", None) is not None:
        complete_generation(base.generation_config, tokenizer)
    transformers.utils.logging.disable_progress_bar()  # a bar a shard says nothing that a user waits for
    with checkpoint_settings(base):
        policy.save_pretrained(folder, **arguments)
    transformers.utils.logging.enable_progress_bar()
    tokenizer.save_pretrained(folder)


def complete_generation(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the base's generation settings end where the trained responses end, and pad with a token that there is.

    All else that the base says stays. Published settings with a temperature and no sampling cannot be written by
    transformers; what they plainly mean is to sample.
    """
    ends = settings.eos_token_id
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    own = tokenizer.eos_token_id
    if own is not None and own not in known:
        settings.eos_token_id = [own, *known] if known else own
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else own
    if settings.bos_token_id is None:
        settings.bos_token_id = tokenizer.bos_token_id
    settings._from_model_config = False  # else transformers takes those of the model's configuration in their place
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def in_dtype(policy: PreTrainedModel, name: str | None) -> PreTrainedModel:
    """The policy with its floating-point weights in another dtype.

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
