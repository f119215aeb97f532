"""Tiny random models of every type that transformers has for causal language modelling."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, POSITIONS, ORIGINAL = 97, 64, 16
"""Tokens; positions; and the original length where LongRoPE is asked for."""


def _names(text: str) -> list[str]:
    return text.split()


NO_TEXT_MODEL = _names(  # encoder-decoders, and models that take images or sound: refused by their configuration
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper musicgen"
    " musicgen_melody moshi git fuyu got_ocr2 emu3 mllama moss_transcribe_diarize blt llama4 gemma3 gemma3n gemma4"
    " gemma4_unified gemma4_assistant gemma4_unified_assistant phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp"
    " dots3_note"
)
NOT_CAUSAL = _names(  # by default: encoders unless is_decoder is set, and two that see both sides always
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer rembert roberta"
    " roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod cpmant"
)
FAST = _names(
    "llama gpt2 opt falcon mixtral phi3 llama4_text gemma3_text rwkv mamba recurrent_gemma phimoe cpmant bert"
)
ALL = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(NO_TEXT_MODEL))

_BY_VALUE: dict[int, str] = {
    1: "n_group topk_group n_shared_experts num_shared_experts mamba_n_groups n_groups mamba_ngroups num_mem_blocks"
    " first_k_dense_replace moe_layer_start_index",
    2: "num_hidden_layers n_layer num_layers n_layers decoder_layers num_key_value_heads num_experts_per_tok moe_k"
    " top_k_experts moe_topk moe_top_k index_n_heads linear_num_key_heads linear_num_value_heads linear_num_heads"
    " swa_num_key_value_heads",
    4: "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads num_local_experts"
    " num_experts n_routed_experts moe_num_experts time_step_rank mamba_dt_rank laurel_rank adapter_rank"
    " swa_num_attention_heads",
    8: "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim"
    " state_size mamba_d_state mamba_n_heads mamba_d_head mamba_num_heads mamba_head_dim ssm_state_size n_mamba_heads"
    " hidden_size_per_layer_input global_head_dim swa_head_dim swa_v_head_dim dim_head",
    16: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size index_head_dim"
    " moe_shared_intermediate_size shared_intermediate_size expert_ffn_hidden_size q_lora_rank kv_lora_rank"
    " qk_head_dim block_size moe_latent_size chunk_size",
    32: "hidden_size n_embd d_model dim_model word_embed_proj_dim lru_width attention_hidden_size embedding_dim"
    " dim_model_base",
    48: "ffn_dim dff n_inner intermediate_size ffn_hidden_size dim_ff",
    POSITIONS: "max_position_embeddings n_positions n_ctx max_seq_len attention_window_size mamba_d_ssm",
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
}
_SIZES = {name: value for value, names in _BY_VALUE.items() for name in _names(names)} | {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "num_kv_shared_layers": 0,
    "use_mamba_kernels": False,
    "qk_dim_factor": 0.5,
}
_WHOLE_HEADS = {"num_key_value_heads": 4}
_LATENT = _names(
    "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa longcat_flash minicpm3"
    " sarvam_mla youtu"
)
_HYBRID: dict[str, Any] = {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4}
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_expand": 2},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
    },
    "falcon_mamba": {"intermediate_size": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_expand": 2},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"intermediate_size": 64},
    "mamba2": {"num_heads": 8, "expand": 2},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mlp"], "num_hidden_layers": 3},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlstm": {"num_heads": 2, "num_blocks": 2},
    "zamba": _WHOLE_HEADS
    | {"num_hidden_layers": 6, "layers_block_type": ["mamba", "mamba", "hybrid"] * 2}
    | {"attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 2},
    "zamba2": _WHOLE_HEADS
    | _HYBRID
    | {"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_expand": 2, "mamba_headdim": 8, "kv_channels": 8},
    "zaya": {"num_experts_per_tok": 1},
    # one layer of full attention, whose cache transformers asks for its length
    **{
        kind: {"layer_types": ["linear_attention", "full_attention"]}
        for kind in _names("qwen3_next qwen3_5_text qwen3_5_moe_text")
    },
    **dict.fromkeys(_LATENT, _WHOLE_HEADS),
}
_NAMED_RATE = re.compile("drop|jitter")


def small_config(kind: str, *, rate: float | None = None, **keys: Any) -> PretrainedConfig:
    """The configuration of a tiny model.

    Args:
        kind: model type.
        rate: of every dropout and jitter that the configuration has; None: its own.
        keys: of the configuration.
    """
    default = AutoConfig.for_model(kind)
    known = set(vars(default)) | set(getattr(default, "attribute_map", {}) or {})
    sizes = {name: value for name, value in _SIZES.items() if name in known} | _OWN.get(kind, {}) | keys
    if kind in ("mamba", "falcon_mamba"):
        sizes.pop("num_attention_heads", None)
    config = AutoConfig.for_model(kind, **sizes)
    if rate is not None:
        _set_rates(config, rate)
    return config


def long_rope(kind: str) -> dict[str, Any] | None:
    """Keys for rotary frequencies that change at ``ORIGINAL`` tokens; None of models that have no such frequencies."""
    config: Any = small_config(kind)
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or "rope_theta" not in rope or rope.get("rope_type", "default") != "default":
        return None
    size = getattr(config, "qk_rope_head_dim", None) or getattr(config, "head_dim", None) or 8
    half = int(size * rope.get("partial_rotary_factor", 1.0)) // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [3.0 + place for place in range(half)], "factor": 4.0}
    scales = {"short_mscale": 1.1, "long_mscale": 1.3} if kind == "phimoe" else {}
    kept = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    parameters = {"rope_type": "longrope", "original_max_position_embeddings": ORIGINAL, **kept, **factors, **scales}
    more = {"original_max_position_embeddings": ORIGINAL} if hasattr(config, "original_max_position_embeddings") else {}
    return {"rope_parameters": parameters, **more}


def build(kind: str, *, rate: float | None = None, **keys: Any) -> Any:
    """A model in evaluation mode whose every weight shows in its log-probs; the same call gives the same weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(kind, rate=rate, **keys), dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if any(part in name for part in ("A_log", "dt_bias", ".D")):  # of state spaces: near where they start
                weight.add_(0.1 * drawn)
            elif weight.ndim >= 2:
                weight.copy_(0.3 * drawn)
            else:
                weight.add_(0.15 * drawn)
    model.config.use_cache = False
    return model.eval()


def _set_rates(config: PretrainedConfig, rate: float) -> None:
    if config.model_type == "diffllama":  # which refuses to have any
        return
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _set_rates(value, rate)
        elif _NAMED_RATE.search(name) and isinstance(value, int | float | None) and not isinstance(value, bool):
            with suppress(StrictDataclassFieldValidationError):  # of MPT, whose own rate is a whole number
                setattr(config, name, rate)
