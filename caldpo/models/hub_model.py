"""Load a model of the Hugging Face hub, or of a folder in its format."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.models.architecture import NEEDS_GPU, choose_attention, require_decoder
from caldpo.models.generation_settings import errors_only, format_settings, readable_settings
from caldpo.models.gradient_checkpointing import Checkpointing
from caldpo.models.hub_files import announce_code, code_files, commit_of, has_tokenizer, require_safe, stored_tensors
from caldpo.models.load_report import (
    attention_error,
    delayed_progress_bars,
    load_error,
    note_router_loss,
    note_unused,
    print_loaded,
)
from caldpo.models.model_source import floating_dtype, prepare_for_training
from caldpo.models.weight_files import require_all_weights, require_equal_experts, require_float_weights, require_shapes
from caldpo.utils.devices import is_out_of_memory
from caldpo.utils.hub_access import cache_only, require_access
from caldpo.utils.notes import print_notes


@validated
@dataclass
class HubModel:
    """``AutoModelForCausalLM`` from the hub or from a folder.

    Args:
        path: hub id or folder.
        revision: branch, tag or commit of a hub model; pin a commit to repeat a run.
        tokenizer: hub id or folder of another tokenizer; None takes the model's own.
        dtype: of the weights; ``auto`` keeps the checkpoint's.
        attention: attention implementation of transformers. ``auto`` takes the fastest that fits, and prints which and
            why, see :mod:`caldpo.models.architecture`; None lets transformers choose. Packed rows have PyTorch's SDPA
            in place of all but ``eager``, see :mod:`caldpo.logprobs.packed_attention`.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them; ``auto``: in
            micro-batches above the budget of tokens alone, which are pairs that are longer.
        dropout: keep the checkpoint's dropout while training.
        trust_remote_code: run Python code that comes with the model, announced on the terminal and named in the
            policy's identity. Off unless you have read that code.
    """

    path: str
    revision: str | None = None
    tokenizer: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] | None = "auto"
    gradient_checkpointing: Checkpointing = False
    dropout: bool = False
    trust_remote_code: bool = False

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        trusted = self.trust_remote_code
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer, key="model.tokenizer", trust_remote_code=trusted)
        return load_tokenizer(self.path, key="model.path", revision=self.revision, trust_remote_code=trusted)

    def load_policy(self) -> PreTrainedModel:
        policy = load_causal_lm(
            self.path,
            key="model.path",
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            dtype="auto" if self.dtype == "auto" else floating_dtype(self.dtype),
            attn_implementation=self.attention,
            announce=True,
        )
        return prepare_for_training(policy, gradient_checkpointing=self.gradient_checkpointing, dropout=self.dropout)

    def skeleton(self) -> PreTrainedModel:
        policy = causal_lm_skeleton(
            self.path,
            key="model.path",
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            dtype=None if self.dtype == "auto" else floating_dtype(self.dtype),
            attention=self.attention,
        )
        return prepare_for_training(policy, gradient_checkpointing=self.gradient_checkpointing, dropout=self.dropout)

    def repository(self) -> HubModel:
        return self

    def pin(self, commit: str) -> None:
        self.revision = commit

    def commit(self) -> str | None:
        return commit_of(self.path, self.revision)

    def identity(self) -> str:
        commit = self.commit()
        identity = f"{self.path}@{commit}" if commit else self.path
        files = code_files(self.path, self.revision) if self.trust_remote_code else []
        return f"{identity} (with Python code of its own: {', '.join(files)})" if files else identity


def load_causal_lm(
    path: str,
    *,
    key: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    announce: bool = False,
    **arguments: Any,
) -> PreTrainedModel:
    """Load a causal language model of the hub or a folder, from safetensors alone, on the default device.

    Args:
        path: hub id or folder, which the configuration names by ``key``.
        attn_implementation: ``auto`` chooses; None lets transformers choose.
        announce: print a line on what was loaded.
        arguments: of ``from_pretrained``.

    Raises:
        CaldpoError: naming ``key``: it does not exist, holds no causal language model, or is a pickle.
    """
    config = _read_config(path, key, revision, trust_remote_code)
    attention, reason = attn_implementation, ""
    if attention == "auto":
        dtype = arguments.get("dtype")
        attention, reason = choose_attention(config, dtype if isinstance(dtype, torch.dtype) else None)
    settings, rejected = readable_settings(path, revision)
    if settings is not None:
        arguments["generation_config"] = settings
        if announce:
            print_notes([f"generation_config.json cannot be loaded with {format_settings(rejected)}: left out"])
    local, started = cache_only(path, revision), time.perf_counter()
    try:
        with delayed_progress_bars(), errors_only():  # tensors that do not match are refused or named below
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                revision=revision or "main",
                trust_remote_code=trust_remote_code,  # left unset, transformers asks on the terminal
                local_files_only=local,
                adapter_kwargs={"local_files_only": local},  # an adapter is looked for without the line above
                use_safetensors=True,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, with names and shapes
                **arguments,
            )
    except Exception as error:  # of transformers, safetensors, or the model's own code
        if is_out_of_memory(error):
            raise
        if attention is not None and (problem := attention_error(attention, error)) is not None:
            raise problem from error
        require_equal_experts(stored_tensors(path, key=key, revision=revision), key=key, value=path)
        raise load_error("model", path, key, error) from error
    policy: PreTrainedModel = loaded[0]
    files = stored_tensors(path, key=key, revision=revision)  # those of the hub are downloaded by now
    _disable_router_loss(policy.config)
    require_shapes({name: (a, b) for name, a, b in loaded[1]["mismatched_keys"]}, files, key=key, value=path)
    require_all_weights(loaded[1]["missing_keys"], key=key, value=path)
    if not hasattr(config, "quantization_config"):
        require_float_weights((name for name, _ in policy.named_parameters()), files, key=key, value=path)
    note_unused(loaded[1]["unexpected_keys"], files, path)
    if announce:
        print_loaded(policy, time.perf_counter() - started, reason, path, revision)
        note_router_loss(config)
    return policy


def _read_config(path: str, key: str, revision: str | None, trusted: bool) -> PretrainedConfig:
    """Read the model's configuration, and refuse what can be refused before weights load."""
    require_safe(path, key=key, revision=revision, trusted=trusted)
    if trusted:
        announce_code(path, revision)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            path,
            revision=revision or "main",
            local_files_only=cache_only(path, revision),
            trust_remote_code=trusted,
        )
    except Exception as error:  # each configuration class validates itself, with errors of its own
        raise load_error("model", path, key, error) from error
    require_decoder(config, key=key, path=path)
    return config


def causal_lm_skeleton(
    path: str,
    *,
    key: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """Build a model of the hub or a folder from its configuration alone, with uninitialised weights.

    Args:
        dtype: of the weights; None takes the one that the configuration names.
        attention: kernels that need a GPU are replaced by transformers' choice, which keeps the same tensors in memory;
            not on the meta device, where the model is built that a GPU is going to run.
    """
    config = _read_config(path, key, revision, trust_remote_code)
    _disable_router_loss(config)
    weights = dtype or (config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32)
    if attention == "auto":
        attention, _ = choose_attention(config, weights)
    if attention in NEEDS_GPU and torch.get_default_device().type != "meta":
        attention = None
    return AutoModelForCausalLM.from_config(
        config, dtype=weights, trust_remote_code=trust_remote_code, attn_implementation=attention
    )


def check_causal_lm(path: str, *, key: str) -> None:
    """Refuse early a model that does not exist, by its configuration, which is small."""
    _read_config(path, key, None, trusted=False)


def load_tokenizer(
    path: str, *, key: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer of the hub or a folder, with a padding token (any: masks never read it)."""
    tokenizer = _read_tokenizer(path, key, revision, trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise CaldpoError(
            "the tokenizer has no EOS token, so that responses could not end",
            key=key,
            value=path,
            remedy="set eos_token in the tokenizer's configuration, or name another by model.tokenizer",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_vocabulary(path: str, *, key: str) -> dict[str, int] | None:
    """Read the token ids of the tokenizer that lies with a model; None where its weights lie alone."""
    return _read_tokenizer(path, key, None, False).get_vocab() if has_tokenizer(path) else None


def _read_tokenizer(path: str, key: str, revision: str | None, trusted: bool) -> PreTrainedTokenizerBase:
    require_access(path, revision, key=key)
    if trusted:
        announce_code(path, revision)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path,
            revision=revision or "main",
            local_files_only=cache_only(path, revision),
            trust_remote_code=trusted,
        )
    except Exception as error:  # the library behind it raises plain ones
        raise load_error("tokenizer", path, key, error) from error
    return tokenizer


def _disable_router_loss(config: PretrainedConfig) -> None:
    """Disable the router loss of experts, which training does not use and packed rows cannot have."""
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False
