"""Which attention a model is loaded with, where ``model.attention=auto`` leaves it open, and why.

FlashAttention where the package, the GPU and the weights' dtype allow; else PyTorch's SDPA, which has FlashAttention
kernels of its own; and FlexAttention for the few models that SDPA cannot compute, such as Gemma 2 with its soft-capped
scores. Packed rows have another attention in its place, see :mod:`caldpo.logprobs.packed_attention`.
"""

from __future__ import annotations

import torch
from transformers import PretrainedConfig
from transformers.utils import is_flash_attn_2_available

from caldpo.models.architecture_check import causal_class

FLASH, FLEX, SDPA, EAGER = "flash_attention_2", "flex_attention", "sdpa", "eager"
NEEDS_GPU = (FLASH, FLEX)
_LARGEST_HEAD = 256  # of FlashAttention's kernels, in numbers a head
_HALF = (torch.bfloat16, torch.float16)


def choose_attention(config: PretrainedConfig, dtype: torch.dtype | None) -> tuple[str | None, str]:
    """The implementation to ask transformers for, and why it is that one.

    Args:
        config: of the model.
        dtype: of the weights; None is the checkpoint's. FlashAttention computes in half precision alone. Weights in
            float32 get SDPA even where ``trainer.precision`` is bfloat16: evaluation may take them as they are.

    Returns:
        None in place of a name where the model's own code has to choose.
    """
    model = causal_class(config)
    if model is None:
        return None, "the model's own code chooses"
    own = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    why_not = _why_not_flash(config, dtype or own, model._supports_flash_attn)
    if why_not is None:
        return FLASH, "package, GPU and dtype allow it"
    if model._supports_sdpa:
        return SDPA, f"no FlashAttention: {why_not}"
    if model._supports_flex_attn and torch.cuda.is_available():
        return FLEX, f"no FlashAttention: {why_not}; no SDPA for {model.__name__}"
    return EAGER, f"no FlashAttention: {why_not}; no SDPA for {model.__name__}"


def _why_not_flash(config: PretrainedConfig, dtype: torch.dtype, supported: bool) -> str | None:
    if not supported:
        return "the model has no way to it"
    if not torch.cuda.is_available():
        return "no GPU"
    if not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    if torch.cuda.get_device_capability()[0] < 8:
        return "the GPU is older than its kernels (compute capability 8.0)"
    if dtype not in _HALF:
        return f"the weights are {str(dtype).removeprefix('torch.')}, and it computes in half precision"
    size = _head_size(config)
    if size is not None and size > _LARGEST_HEAD:
        return f"heads of {size}, and its kernels end at {_LARGEST_HEAD}"
    return None


def _head_size(config: PretrainedConfig) -> int | None:
    text = config.get_text_config()
    size = getattr(text, "head_dim", None)
    if size is None and getattr(text, "hidden_size", None) and getattr(text, "num_attention_heads", None):
        size = text.hidden_size // text.num_attention_heads
    return size
