"""A model of the Hugging Face hub, or a folder in its format."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from pathlib import Path
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
from caldpo.errors import CaldpoError, one_line
from caldpo.models.architecture_check import require_decoder
from caldpo.models.attention_choice import NEEDS_GPU, choose_attention
from caldpo.models.generation_settings import listed, readable_settings
from caldpo.models.hub_files import announce_code, commit_of, only_pickles, require_safe, stored_tensors, with_code
from caldpo.models.load_report import (
    describe_loaded,
    leave_out_router_loss,
    note_router_loss,
    note_unused,
    patient_bar,
    print_loaded,
    quiet_report,
)
from caldpo.models.model_source import floating_dtype, prepare_for_training
from caldpo.models.weight_files import require_even, require_numbers, require_shapes
from caldpo.utils.notes import print_notes
from caldpo.utils.out_of_memory import is_out_of_memory


class HubModel:
    """``AutoModelForCausalLM`` from the hub or from a folder.

    Args:
        path: hub id or folder.
        revision: branch, tag or commit of a hub model; pin a commit to repeat a run.
        tokenizer: hub id or folder of another tokenizer; None takes the model's own.
        dtype: of the weights; ``auto`` keeps the checkpoint's.
        attention: attention implementation of transformers. ``auto`` takes the fastest that is right here and says
            which and why, see :mod:`caldpo.models.attention_choice`; None lets transformers choose. Packed rows have
            PyTorch's SDPA in place of all but ``eager``, see :mod:`caldpo.logprobs.packed_attention`.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        dropout: keep the checkpoint's dropout while training.
        trust_remote_code: run Python code that comes with the model, announced on the terminal and named in the
            policy's identity. Off unless you have read that code.
    """

    @validated
    def __init__(
        self,
        path: str,
        revision: str | None = None,
        tokenizer: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] | None = "auto",
        gradient_checkpointing: bool = False,
        dropout: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.path, self.revision, self.tokenizer, self.dtype = path, revision, tokenizer, dtype
        self.attention, self.trust_remote_code = attention, trust_remote_code
        self.gradient_checkpointing, self.dropout = gradient_checkpointing, dropout

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        own = self.tokenizer is None
        return load_tokenizer(
            self.path if own else str(self.tokenizer),
            key="model.path" if own else "model.tokenizer",
            revision=self.revision if own else None,
            trust_remote_code=self.trust_remote_code,
        )

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

    def identity(self) -> str:
        commit = self.commit()
        identity = f"{self.path}@{commit}" if commit else self.path
        return with_code(identity, self.path, self.revision) if self.trust_remote_code else identity

    def commit(self) -> str | None:
        """Return the commit that the revision stands for now; None for a folder, or where the hub does not tell."""
        return commit_of(self.path, self.revision)

    def pin(self, commit: str) -> None:
        """Load this commit from now on."""
        self.revision = commit


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
    """A causal language model of the hub or a folder, from safetensors alone, on the default device.

    Args:
        path: hub id or folder.
        key: configuration key of ``path``.
        revision: of a hub id.
        trust_remote_code: run Python code that comes with the model.
        attn_implementation: ``auto`` chooses; None lets transformers choose.
        announce: print one line that says what was loaded.
        arguments: of ``from_pretrained``.

    Raises:
        CaldpoError: naming ``key``: it is not there, holds no causal language model, or is a pickle.
    """
    config = _read_config(path, key, revision, trust_remote_code)
    attention, why = attn_implementation, ""
    if attention == "auto":
        dtype = arguments.get("dtype")
        attention, why = choose_attention(config, dtype if isinstance(dtype, torch.dtype) else None)
    settings, left_out = readable_settings(path, revision)
    if settings is not None:
        arguments["generation_config"] = settings
        if announce:
            print_notes([f"generation_config.json cannot be loaded with {listed(left_out)}: left out"])
    started = time.perf_counter()
    files = stored_tensors(path, key=key, revision=revision)
    try:
        with patient_bar(), quiet_report():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                revision=revision or "main",
                trust_remote_code=trust_remote_code,  # left unset, transformers asks on the terminal
                use_safetensors=True,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, with names and shapes
                **arguments,
            )
    except Exception as error:  # of transformers, safetensors, or the model's own code
        if is_out_of_memory(error):
            raise
        if attention is not None and _is_about_attention(error):
            raise _cannot_attend(attention, error) from error
        require_even(stored_tensors(path, key=key, revision=revision), key=key, value=path)
        raise _cannot_load("model", path, key, error) from error
    policy: PreTrainedModel = loaded[0]
    leave_out_router_loss(policy.config)
    require_shapes({name: (a, b) for name, a, b in loaded[1]["mismatched_keys"]}, files, key=key, value=path)
    _require_whole(loaded[1]["missing_keys"], key, path)
    if not hasattr(config, "quantization_config"):
        require_numbers((name for name, _ in policy.named_parameters()), files, key=key, value=path)
    note_unused(loaded[1]["unexpected_keys"], files, path)
    if announce:
        print_loaded(describe_loaded(policy, time.perf_counter() - started, why), path, revision)
        note_router_loss(config)
    return policy


def _read_config(path: str, key: str, revision: str | None, trusted: bool) -> PretrainedConfig:
    """The model's configuration, with all that can be refused before weights load."""
    require_safe(path, key=key, revision=revision, trusted=trusted)
    if trusted:
        announce_code(path, revision)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            path, revision=revision or "main", trust_remote_code=trusted
        )
    except Exception as error:  # each kind of configuration checks itself, with errors of its own
        raise _cannot_load("model", path, key, error) from error
    require_decoder(config, key=key, path=path)
    return config


def _require_whole(missing: Collection[str], key: str, path: str) -> None:
    """Refuse a model some of whose weights were in no file: transformers has drawn them at random."""
    if missing:
        few = sorted(missing)[:3]
        more = f" and {len(missing) - len(few)} more" if len(missing) > len(few) else ""
        raise CaldpoError(
            f"its files lack weights of the model ({', '.join(few)}{more})",
            key=key,
            value=path,
            remedy="take a checkpoint that is whole, and of the architecture that its config.json names",
        )


def causal_lm_skeleton(
    path: str,
    *,
    key: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """A model of the hub or a folder by its configuration alone, with weights of no meaning.

    Args:
        dtype: of the weights; None takes the one that the configuration names.
        attention: kernels that need a GPU are replaced by transformers' choice, which keeps the same tensors; not on
            the meta device, where a model is made that a GPU is going to compute with.

    Raises:
        CaldpoError: naming ``key``: there is no such configuration, or a model of it would not be loaded either.
    """
    config = _read_config(path, key, revision, trust_remote_code)
    leave_out_router_loss(config)
    weights = dtype or (config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32)
    if attention == "auto":
        attention, _ = choose_attention(config, weights)
    if attention in NEEDS_GPU and torch.get_default_device().type != "meta":
        attention = None
    return AutoModelForCausalLM.from_config(
        config, dtype=weights, trust_remote_code=trust_remote_code, attn_implementation=attention
    )


def check_causal_lm(path: str, *, key: str) -> None:
    """Read a model's configuration, which is small, to learn early whether it is there.

    Raises:
        CaldpoError: naming ``key``: it is not.
    """
    _read_config(path, key, None, trusted=False)


def load_tokenizer(
    path: str, *, key: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer of the hub or a folder, with a padding token (any: masks never read it).

    Raises:
        CaldpoError: naming ``key``: it is not there, or has no EOS token.
    """
    if trust_remote_code:
        announce_code(path, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the library behind it raises plain ones
        raise _cannot_load("tokenizer", path, key, error) from error
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


def _is_about_attention(error: Exception) -> bool:
    return re.search(r"flash.?att|flex.?att|attn_implementation|scaled_dot_product", str(error), re.I) is not None


def _cannot_attend(attention: str, error: Exception) -> CaldpoError:
    package = ", or install the package flash-attn, built for this PyTorch and CUDA" if "flash" in attention else ""
    return CaldpoError(
        f"cannot be used here: {_first_sentence(error)}",
        key="model.attention",
        value=attention,
        remedy="set model.attention=sdpa, which on a GPU uses PyTorch's own FlashAttention kernels" + package,
    )


def _first_sentence(error: Exception) -> str:
    if not isinstance(error, OSError | ValueError | ImportError):
        return one_line(error)
    return one_line(error).partition(": ")[2] or type(error).__name__


def _cannot_load(what: str, path: str, key: str, error: Exception) -> CaldpoError:
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().exists():
        return CaldpoError(f"there is no such folder to load a {what} from", key=key, value=path)
    if "safetensors" in str(error) and what == "model":
        return only_pickles(path, key, f"it has no weights as safetensors: {_first_sentence(error)}")
    if what == "tokenizer" and Path(path).is_dir() and not _tokenizer_files(Path(path)):
        return CaldpoError(
            "this folder holds no tokenizer",
            key=key,
            value=path,
            remedy="save the model's tokenizer there, too (save_pretrained of transformers), or name one by"
            " model.tokenizer=ID_OR_FOLDER",
        )
    if Path(path).is_dir():
        file = "config.json" if what == "model" else "tokenizer_config.json and tokenizer.json"
        remedy = f"mend its {file}, or name a folder that save_pretrained of transformers has written"
        return CaldpoError(f"cannot load a {what}: {_first_sentence(error)}", key=key, value=path, remedy=remedy)
    return CaldpoError(
        f"cannot load a {what}: {_first_sentence(error)}",
        key=key,
        value=path,
        remedy="give the id of a causal language model on the hub (check the spelling, the network and, for a"
        " gated model, HF_TOKEN) or a folder written by save_pretrained",
    )


def _tokenizer_files(folder: Path) -> list[Path]:
    patterns = ("tokenizer*", "vocab*", "*.model", "merges.txt", "*.tiktoken")
    return [file for pattern in patterns for file in folder.glob(pattern)]
