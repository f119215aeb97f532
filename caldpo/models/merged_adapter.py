"""Merge the policy's adapter into its weights: one model, which other programs load without PEFT."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from caldpo.models.adapted_policy import base_model, is_adapted
from caldpo.models.qlora import dequantized, is_quantized

_log = logging.getLogger("caldpo")


def merged(policy: Any, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Copy the policy, which is not sharded, with its adapter merged, in main memory; the policy is left unchanged.

    Updates are added in float32. A base of 4 or 8 bits is dequantised first, which restores no precision that rounding
    has lost. The result has ``dtype``, else that of the base's weights that are not quantised; where it is narrower
    than float32, the last digits of small updates are lost, too.
    """
    dtype = base_model(policy).dtype if dtype is None else dtype
    copied = copy.deepcopy(policy)
    if any(map(is_quantized, copied.modules())):
        _log.warning("merged: the base is quantised; the merged weights are its dequantised ones, in %s", dtype)
        copied = _dequantize(copied)
    else:
        copied = copied.to("cpu")
    nn.Module.to(copied, dtype=torch.float32)
    model: Any = copied.merge_and_unload(adapter_names=["default"]) if is_adapted(copied) else copied
    nn.Module.to(model, device="cpu", dtype=dtype)
    model.config.dtype = dtype
    return model


def save_merged(policy: Any, folder: Path) -> None:
    """Write :func:`merged` as a Hugging Face folder of safetensors, without tokenizer."""
    model = merged(policy)
    model.config.use_cache = True
    model.save_pretrained(folder)


def _dequantize(policy: Any) -> Any:
    """Replace quantised matrices under PEFT's layers by full ones, with the updates already added to them."""
    for parent in [m for m in policy.modules() if not hasattr(m, "base_layer")]:
        for name, layer in list(parent.named_children()):
            base = getattr(layer, "base_layer", layer)
            if is_quantized(base):
                matrix = dequantized(base)
                if base is not layer:
                    matrix = matrix + layer.get_delta_weight("default").float().to(matrix.device)
                setattr(parent, name, _linear(base, matrix))
    model = base_model(policy)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        setattr(model, flag, False)
    return model


def _linear(base: Any, matrix: torch.Tensor) -> nn.Module:
    layer: Any
    if base.transposed:
        layer = Conv1D(base.out_features, base.in_features)
        layer.weight = nn.Parameter(matrix.T.contiguous())
    else:
        layer = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(matrix)
    if base.bias is not None or not base.transposed:
        layer.bias = base.bias
    return layer
