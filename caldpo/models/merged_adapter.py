"""The policy as one model, its adapter's updates added to the weights: what other programs load without PEFT."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from caldpo.models.adapters import base_model, is_adapted
from caldpo.models.qlora import is_quantized, widened

_log = logging.getLogger("caldpo")


def merged(policy: Any, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A copy of the policy with its adapter merged, in main memory; the policy stays as it is.

    Updates are added in float32. A base of 4 or 8 bits is widened first: no bits come back that rounding has taken,
    and only ``dtype`` is lost on top of it. Where ``dtype`` is narrower than float32, the last digits of small updates
    are lost, too.

    Args:
        policy: not sharded over ranks.
        dtype: of the result; None: that of the base's weights that are not rounded.
    """
    dtype = base_model(policy).dtype if dtype is None else dtype
    whole = copy.deepcopy(policy).to("cpu") if not _rounded(policy) else copy.deepcopy(policy)
    if _rounded(whole):
        _log.warning("merged: the base was rounded to few bits; the merged weights are the rounded ones, in %s", dtype)
        whole = _widen(whole)
    nn.Module.to(whole, dtype=torch.float32)
    model: Any = whole.merge_and_unload(adapter_names=["default"]) if is_adapted(whole) else whole
    nn.Module.to(model, device="cpu", dtype=dtype)
    model.config.dtype = dtype
    return model


def save_merged(policy: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write :func:`merged` as a Hugging Face folder of safetensors, without tokenizer."""
    model = merged(policy, dtype)
    model.config.use_cache = True
    model.save_pretrained(folder)


def _rounded(policy: nn.Module) -> bool:
    return any(map(is_quantized, policy.modules()))


def _widen(policy: Any) -> Any:
    """The same policy with whole matrices under PEFT's layers, the updates already added to them."""
    for parent in [m for m in policy.modules() if not hasattr(m, "base_layer")]:
        for name, layer in list(parent.named_children()):
            base = getattr(layer, "base_layer", layer)
            if is_quantized(base):
                matrix = widened(base)
                if base is not layer:
                    matrix = matrix + layer.get_delta_weight("default").float().to(matrix.device)
                setattr(parent, name, _linear(base, matrix))
    model = base_model(policy)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        setattr(model, flag, False)
    return model


def _linear(base: Any, matrix: torch.Tensor) -> nn.Module:
    made: Any
    if base.transposed:
        made = Conv1D(base.out_features, base.in_features)
        made.weight = nn.Parameter(matrix.T.contiguous())
    else:
        made = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(matrix)
    if base.bias is not None or not base.transposed:
        made.bias = base.bias
    return made
