"""Find and load the weights of a policy and of its reference, on one device and in a run's precision.

Without a Trainer, and without running any pickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caldpo.checkpointing.best_checkpoint import find_best
from caldpo.checkpointing.checkpoint_io import load_into_policy, policy_weights
from caldpo.checkpointing.manifest import MANIFEST, OPTIMIZER_PARTS, Wanted
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluation_target import Target
from caldpo.model_data_checks import skeleton_of
from caldpo.models.adapters import AdapterSource
from caldpo.models.hub_model import causal_lm_skeleton, load_causal_lm, read_vocabulary
from caldpo.models.model_source import ModelSource, floating_dtype
from caldpo.reference.reference_load import check_tokens, check_vocabulary, freeze
from caldpo.utils.digests import known_digest
from caldpo.utils.notes import print_notes

REFERENCE_KEY = "reference.path"
_SUFFIXES = (".safetensors", ".json", ".py", ".jinja", ".model", ".txt")  # of the files that a model is loaded from
_WEIGHT_DTYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}  # precisions that change a model's own dtype


def find_device(name: str) -> torch.device:
    """Return the device of ``device=``; refuse a GPU where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise CaldpoError("there is no GPU here", key="device", value=name, remedy="use device=cpu, or device=auto")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def place(model: PreTrainedModel, precision: str, device: torch.device) -> PreTrainedModel:
    """Move the model to the device, cast to the dtype of the precision if it names one; in place."""
    torch.nn.Module.to(model, device=device, dtype=_WEIGHT_DTYPES.get(precision))
    return model


@dataclass(frozen=True)
class Weights:
    """Location of a policy's weights."""

    step: int | None  # optimiser steps of training; None for a model that is no run's
    path: Path | None  # ``policy/`` of a run, or a checkpoint; None for the start, as ``model`` loads it

    def fingerprint(self) -> list[list[Any]]:
        """Return name, size and SHA-256 of the files that are loaded, weights first."""
        if self.path is None:
            return []
        files = [f for f in self.path.rglob("*") if f.suffix in _SUFFIXES and f.parent.name != OPTIMIZER_PARTS]
        ordered = sorted(files, key=lambda file: (file.suffix != _SUFFIXES[0], file))
        return [[str(f.relative_to(self.path)), f.stat().st_size, known_digest(f)] for f in ordered if f.is_file()]


def find_weights(target: Target, wanted: Wanted) -> Weights:
    """Find the weights that ``checkpoint=`` names.

    Raises:
        CaldpoError: the run did not save them.
    """
    if target.run is None:
        return Weights(None, None)
    if wanted == "best":
        best = find_best(target.run, target.of_run("callbacks.checkpoint", None))
        print_notes([f"{target.name}: {note}" for note in (best.note,) if note])
        return Weights(best.step, best.folder)
    saved = target.checkpoints()
    export = target.run / "policy"
    exported = export.is_dir() and any(export.glob("*.safetensors"))
    if isinstance(wanted, int):
        if wanted in saved or wanted == 0:
            return Weights(wanted, saved.get(wanted))
    elif exported:
        return Weights(target.steps, export)
    elif saved and (wanted == "last" or max(saved) == target.steps):
        return Weights(max(saved), saved[max(saved)])
    raise CaldpoError(
        f"{target.run} (status: {target.summary.get('status', 'unknown')}) did not save these weights: it has"
        f" {'a' if exported else 'no'} policy/, and "
        + (f"checkpoints of step {', '.join(map(str, saved))}" if saved else "no checkpoint"),
        key="checkpoint",
        value=wanted,
        remedy="choose one that it has (or checkpoint=last), or train again with export=true"
        " or callbacks.checkpoint.every=N",
    )


def load_weights(weights: Weights, source: ModelSource, adapter: AdapterSource, target: Target) -> PreTrainedModel:
    """Load the policy with these weights, frozen and in evaluation mode.

    Raises:
        CaldpoError: the files are damaged, or of another model than the run's configuration names.
    """
    try:
        return _load(weights.path, source, adapter, target).eval().requires_grad_(False)
    except CaldpoError:
        raise
    except Exception as error:  # safetensors, zip archives and transformers each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CaldpoError(f"these weights cannot be loaded: {reason}", key=str(weights.path or target.name)) from error


def require_vocabulary(path: str, source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a reference that does not exist or has another vocabulary than the policy; no weights load."""
    check_tokens(tokenizer, read_vocabulary(path, key=REFERENCE_KEY), path)
    with torch.device("meta"):
        reference = causal_lm_skeleton(path, key=REFERENCE_KEY)
    policy = skeleton_of(source)
    if policy is not None:  # else checked once both have loaded
        check_vocabulary(path, reference, policy)


def load_reference(path: str | None, dtype: str, source: ModelSource) -> PreTrainedModel:
    """Load the reference at ``path``, or the policy's start; ``dtype`` is the run's ``reference.dtype``."""
    model = source.load_policy() if path is None else load_causal_lm(path, key=REFERENCE_KEY, dtype="auto")
    return model.eval().requires_grad_(False) if dtype == "same" else freeze(model, floating_dtype(dtype))


def _load(path: Path | None, source: ModelSource, adapter: AdapterSource, target: Target) -> PreTrainedModel:
    if path is None:
        start = source.load_policy()
        return adapter.apply(start) if adapter.keeps_reference else start  # one that keeps it starts from its adapter
    if (path / MANIFEST).is_file():
        return _load_checkpoint(path, source, adapter, target)
    if (path / "adapter_config.json").is_file():
        return adapter.restore(source.load_policy(), path)
    return load_causal_lm(
        str(path),
        key="policy",
        trust_remote_code=bool(target.of_run("model.trust_remote_code", False)),
        dtype="auto",
        attn_implementation=target.of_run("model.attention", None),
    )


def _load_checkpoint(folder: Path, source: ModelSource, adapter: AdapterSource, target: Target) -> PreTrainedModel:
    """Load the start of training, then the weights of a checkpoint into it: the adapter's only, if there is one."""
    weights = policy_weights(folder)  # a damaged checkpoint is refused before a model loads
    policy = adapter.apply(source.load_policy())
    torch.nn.Module.to(policy, dtype=_WEIGHT_DTYPES.get(str(target.of_run("trainer.precision", ""))))
    load_into_policy(policy, weights, folder)
    return policy
