"""Whether prompts of several lengths may be continued in one batch: asked of the model itself, on a few tokens.

Prompts are padded on the left, and a mask says what is padding. A recurrent model (RWKV, RecurrentGemma) reads it all
the same, so that the same prompt is continued otherwise in a batch than alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from caldpo.models.generation_settings import without_own_settings

_SHORT, _LONG = 3, 8  # tokens of the two probes
_TOKENS = 2  # generated: the second one reads the cache
# Largest difference of logits that is rounding, relative to the largest logit of the probe.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_BY_LENGTH = ("dynamic", "longrope")  # rotary embeddings that are another function for a whole batch with a long row


class Together(Enum):
    """Which prompts a batch may hold."""

    ANY = "of any length"
    SAME_LENGTH = "of equal length"
    ALONE = "one at a time"


def may_share_a_batch(model: PreTrainedModel, longest: int, device: torch.device, *, synced: bool = False) -> Together:
    """Which prompts may be continued in one batch without changing what follows any of them.

    Args:
        model: in evaluation mode.
        longest: tokens of the longest prompt and its response.
        device: where the model computes.
        synced: whether the weights are sharded over ranks, all of which have to ask.
    """
    config = model.config.get_text_config()
    vocabulary = int(config.vocab_size)
    # from the middle of the vocabulary: special tokens mostly stand at its ends
    room = min(_LONG, longest - _TOKENS)
    if room < 2:
        return Together.ANY
    ids = [(vocabulary // 2 + 7 * i) % vocabulary for i in range(_SHORT + _LONG)]
    short, long = ids[: min(_SHORT, room - 1)], ids[_SHORT:][:room]
    alone = _logits(model, [short], device, synced)
    if _same(_logits(model, [short, long], device, synced)[:1], alone, model):
        return Together.SAME_LENGTH if _rotates_by_length(config, longest) else Together.ANY
    if _same(_logits(model, [short, long[: len(short)]], device, synced)[:1], alone, model):
        return Together.SAME_LENGTH
    return Together.ALONE


@torch.no_grad()
def _logits(model: PreTrainedModel, prompts: list[list[int]], device: torch.device, synced: bool) -> Tensor:
    """Logits of the first tokens that follow each prompt, likeliest ones, ``(prompts, tokens, vocabulary)``."""
    ids, mask = left_padded(prompts, 0, device)
    with without_own_settings(model) as base:
        kind: Any = type(base)
        out = kind.generate(
            base,
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=_TOKENS,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            ),
            synced_gpus=synced,
        )
    return torch.stack(out.logits, dim=1)


def left_padded(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask of prompts, padding on the left, each ``(prompts, longest)``."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _same(found: Tensor, expected: Tensor, model: PreTrainedModel) -> bool:
    finite = found.isfinite() & expected.isfinite()
    if not bool(finite.any()):
        return True  # nothing can be told, and sampling itself will say what is wrong
    rounding = max(_ROUNDING.get(dtype, 1e-4) for dtype in (model.dtype, _autocast_dtype(found.device)))
    difference = torch.where(finite, found - expected, 0).abs().max()
    return bool(difference <= rounding * torch.where(finite, expected, 0).abs().max())


def _autocast_dtype(device: torch.device) -> torch.dtype:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float64


def _rotates_by_length(config: Any, longest: int) -> bool:
    """Whether positions are embedded otherwise once any row of a batch is longer than the model was made for."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters, *(value for value in parameters.values() if isinstance(value, Mapping))]
    kinds = [entry.get("rope_type", entry.get("type")) for entry in each]
    if not any(kind in _BY_LENGTH for kind in kinds):
        return False
    known = [entry.get("original_max_position_embeddings") for entry in each]
    bounds = [n for n in (*known, getattr(config, "original_max_position_embeddings", None)) if isinstance(n, int)]
    most = min(bounds, default=getattr(config, "max_position_embeddings", 0) or 0)
    return longest > most
