"""Tiny random models of many architectures, whose attention, caps and scales all show in their log-probs."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.models.model_source import prepare_for_training

VOCABULARY = 61
_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
_GROUPED = _SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}
_ONE_KIND = _SIZES | {"num_key_value_heads": 2}

KEYS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": 64},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 64}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "gpt_neox": _SIZES,
    "gemma2": _GROUPED
    | {"head_dim": 8, "sliding_window": 64, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 0.7},
    "cohere": _ONE_KIND | {"logit_scale": 0.5},
    "granite": _ONE_KIND | {"logits_scaling": 2.5},
    "opt": _SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0},
    "olmo2": _GROUPED,
    # makes that packed rows are not for
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": _SIZES | {"alibi": False},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2},
    "gpt_oss": _GROUPED | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_next": _GROUPED
    | {"head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    | {"shared_expert_intermediate_size": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    # other makes that packed rows are for
    "mixtral": _GROUPED | {"num_local_experts": 2},
    "gemma3_text": _GROUPED | {"head_dim": 8, "sliding_window": 64},
    "phi": _SIZES,
}

PARITY = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma2", "cohere", "granite", "opt", "olmo2"]


def make(
    architecture: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, packed: bool = False, **keys: Any
) -> Any:
    """A model in evaluation mode; ``keys`` change its configuration. The same call gives the same weights."""
    settings = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(architecture, **settings | KEYS[architecture] | keys)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(0.3 * drawn)
            elif "norm" in name or "ln_" in name:
                parameter.add_(0.2 * drawn)  # beside the 1 or 0 that it starts from
            else:
                parameter.add_(0.1 * drawn)
    model.config.use_cache = False
    if packed:
        use_packed_attention(model)
    return model.to(dtype).eval()


@functools.cache
def kept(
    architecture: str, dtype: torch.dtype = torch.float32, packed: bool = False, checkpointed: bool = False
) -> Any:
    """One model for all tests that leave it as it is; checkpointed models are in training mode."""
    if not packed and not checkpointed:
        return make(architecture, dtype=dtype)
    model = copy.deepcopy(kept(architecture, dtype))
    if packed:
        use_packed_attention(model)
    if checkpointed:
        prepare_for_training(model, gradient_checkpointing=True, dropout=True).train()
    return model


def wide_copy(model: nn.Module) -> Any:
    """The same weights in float64, behind transformers' written-out attention: nothing in common with the engine."""
    wide: Any = copy.deepcopy(model).double().eval()
    inner = wide.get_base_model() if hasattr(wide, "get_base_model") else wide
    inner.set_attn_implementation("eager")
    if hasattr(inner.config, "num_local_experts") or hasattr(inner.config, "num_experts"):
        inner.set_experts_implementation("eager")  # the others know no float64
    return wide


def transformed(model: Any, z: Tensor) -> Tensor:
    """What each make does to the output of its head, as its configuration's documentation says."""
    config: Any = model.config
    if config.model_type == "cohere":
        return z * config.logit_scale
    if config.model_type == "granite":
        return z / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return z if cap is None else cap * torch.tanh(z / cap)
