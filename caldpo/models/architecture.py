"""Check by its configuration that a model is a decoder-only language model, and choose its attention.

Where ``model.attention=auto`` leaves the attention open: FlashAttention where the package, the GPU and the weights'
dtype allow; else PyTorch's SDPA, which has FlashAttention kernels of its own; and FlexAttention for the few models that
SDPA cannot compute, such as Gemma 2 with its soft-capped scores. Packed rows have another attention in its place, see
:mod:`caldpo.logprobs.packed_attention`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from caldpo.errors import CaldpoError

FLASH, FLEX, SDPA, EAGER = "flash_attention_2", "flex_attention", "sdpa", "eager"
NEEDS_GPU = (FLASH, FLEX)
_MAX_HEAD_DIM = 256  # of FlashAttention's kernels
_HALF = (torch.bfloat16, torch.float16)
_OTHER_HEAD = re.compile(r"(?:For(?!CausalLM)[A-Z]\w*|DoubleHeadsModel)$")
_MODALITIES = ("vision_config", "audio_config")


def require_decoder(config: PretrainedConfig, *, key: str, path: str) -> None:
    """Refuse a model that is not a decoder-only language model, or whose checkpoint has no output head.

    transformers would load the checkpoint of a classifier or a headless model with a head of random weights.
    """
    why = _why_no_decoder(config)
    if why is not None:
        raise CaldpoError(
            f"is not a decoder-only language model: {why}",
            key=key,
            value=path,
            remedy="name a text model that AutoModelForCausalLM loads, such as those of conf/model",
        )


def causal_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """Find the class that a configuration is loaded as; None where it brings its own code, or has no such class."""
    classes: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)  # transformers has no public look-up
    return classes[0] if isinstance(classes, tuple | list) else classes


def _why_no_decoder(config: PretrainedConfig) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return f"its config.json describes an encoder-decoder ({config.model_type})"
    modalities = [name for name in _MODALITIES if getattr(config, name, None) is not None]
    if modalities:
        return f"its config.json has a {' and a '.join(modalities)}: it takes more than text ({config.model_type})"
    if getattr(config, "auto_map", None):  # its own code defines the class
        return None
    loaded_as = causal_class(config)
    if loaded_as is None:
        return f"transformers has no decoder of the type {config.model_type}"
    stored = [str(name) for name in getattr(config, "architectures", None) or ()]
    if stored and loaded_as.__name__ not in stored:
        tied = getattr(config, "tie_word_embeddings", False)
        headless = [name for name in stored if name.endswith("Model") and "LM" not in name and not tied]
        wrong = [name for name in stored if _OTHER_HEAD.search(name)] or headless
        if wrong:
            return f"its weights are those of a {wrong[0]}, without the output head of {loaded_as.__name__}"
    if getattr(config, "is_decoder", True) is False and type(config) in AutoModelForMaskedLM._model_mapping:
        return f"it is an encoder ({config.model_type}, is_decoder=false), whose log-probs see the tokens they predict"
    return None


def choose_attention(config: PretrainedConfig, dtype: torch.dtype | None) -> tuple[str | None, str]:
    """Choose the attention implementation to request from transformers, and give the reason.

    Args:
        config: of the model.
        dtype: of the weights; None is the checkpoint's. FlashAttention computes only in half precision. Weights in
            float32 get SDPA even where ``trainer.precision`` is bfloat16: evaluation may take them as they are.

    Returns:
        None in place of a name where the model's own code has to choose.
    """
    model = causal_class(config)
    if model is None:
        return None, "the model's own code chooses"
    own = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    obstacle = _flash_obstacle(config, dtype or own, model._supports_flash_attn)
    if obstacle is None:
        return FLASH, "package, GPU and dtype allow it"
    if model._supports_sdpa:
        return SDPA, f"no FlashAttention: {obstacle}"
    if model._supports_flex_attn and torch.cuda.is_available():
        return FLEX, f"no FlashAttention: {obstacle}; no SDPA for {model.__name__}"
    return EAGER, f"no FlashAttention: {obstacle}; no SDPA for {model.__name__}"


def _flash_obstacle(config: PretrainedConfig, dtype: torch.dtype, supported: bool) -> str | None:
    if not supported:
        return "the model does not support it"
    if not torch.cuda.is_available():
        return "no GPU"
    if not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    if torch.cuda.get_device_capability()[0] < 8:
        return "its kernels need compute capability 8.0"
    if dtype not in _HALF:
        return f"it computes in half precision, and the weights are {str(dtype).removeprefix('torch.')}"
    text = config.get_text_config()
    size = getattr(text, "head_dim", None)
    if size is None and getattr(text, "hidden_size", None) and getattr(text, "num_attention_heads", None):
        size = text.hidden_size // text.num_attention_heads
    if size is not None and size > _MAX_HEAD_DIM:
        return f"its kernels take a head dimension of at most {_MAX_HEAD_DIM}, and the model has {size}"
    return None
