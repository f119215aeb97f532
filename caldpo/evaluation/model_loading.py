"""Find and load the weights of a policy and of its reference, on one device and in a run's precision.

Without a Trainer, and without running any pickle.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from caldpo.checkpointing.checkpoint_io import load_policy_weights
from caldpo.checkpointing.manifest import MANIFEST, OPTIMIZER_PARTS
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluation_target import Target
from caldpo.model_data_checks import skeleton_of
from caldpo.models.adapters import AdapterSource
from caldpo.models.hub_model import causal_lm_skeleton, load_causal_lm
from caldpo.models.model_source import ModelSource, floating_dtype
from caldpo.reference.reference_load import freeze, vocabulary_error
from caldpo.utils.atomic_io import known_digest

_SUFFIXES = (".safetensors", ".json", ".py", ".jinja", ".model", ".txt")  # of the files that a model is loaded from
_AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_WEIGHT_DTYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}  # precisions that change a model's own dtype
_REFERENCE_KEY = "reference.path"


def find_device(name: str) -> torch.device:
    """Return the device of ``device=``.

    Raises:
        CaldpoError: a GPU is requested and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise CaldpoError("there is no GPU here", key="device", value=name, remedy="use device=cpu, or device=auto")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def forward_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of Lightning's forward pass in this precision (Lightning's name)."""
    if precision in _AUTOCAST_DTYPES:
        return torch.autocast(device.type, dtype=_AUTOCAST_DTYPES[precision])
    return nullcontext()


def place(model: PreTrainedModel, precision: str, device: torch.device) -> PreTrainedModel:
    """Move the model to the device, cast to the dtype of the precision if it names one; in place."""
    torch.nn.Module.to(model, device=device, dtype=_WEIGHT_DTYPES.get(precision))
    return model


@dataclass(frozen=True)
class Weights:
    """Location of a policy's weights.

    Args:
        step: optimiser steps that they were trained for; None for a model that is no run's.
        path: ``policy/`` of a run, or a checkpoint; None for the start, as ``model`` loads it.
    """

    step: int | None
    path: Path | None

    def fingerprint(self) -> list[list[Any]]:
        """Return name, size and SHA-256 of the files that are loaded, weights first.

        No times: contents may change while they stay.
        """
        if self.path is None:
            return []
        files = [f for f in self.path.rglob("*") if f.suffix in _SUFFIXES and f.parent.name != OPTIMIZER_PARTS]
        ordered = sorted(files, key=lambda file: (file.suffix != _SUFFIXES[0], file))
        return [[str(f.relative_to(self.path)), f.stat().st_size, known_digest(f)] for f in ordered if f.is_file()]


def find_weights(target: Target, wanted: Literal["final", "last"] | int) -> Weights:
    """Find the weights that ``checkpoint=`` names.

    Raises:
        CaldpoError: the run did not save them.
    """
    if target.run is None:
        return Weights(None, None)
    saved = target.checkpoints()
    available = f"it has checkpoints of step {', '.join(map(str, saved))}" if saved else "it has no checkpoint"
    if isinstance(wanted, int):
        if wanted in saved:
            return Weights(wanted, saved[wanted])
        if wanted == 0:
            return Weights(0, None)
        raise _not_saved(wanted, f"no checkpoint of this step: {available}")
    export = target.run / "policy"
    if export.is_dir() and any(export.glob("*.safetensors")):
        return Weights(target.steps, export)
    if saved and (wanted == "last" or max(saved) == target.steps):
        return Weights(max(saved), saved[max(saved)])
    status = target.summary.get("status", "unknown")
    raise _not_saved(wanted, f"{target.run} (status: {status}) holds no policy/, and {available}")


def load_weights(weights: Weights, source: ModelSource, adapter: AdapterSource, target: Target) -> PreTrainedModel:
    """Load the policy with these weights, freeze and in evaluation mode.

    Raises:
        CaldpoError: the files are damaged, or of another model than the run's configuration names.
    """
    try:
        return _load(weights, source, adapter, target).eval().requires_grad_(False)
    except CaldpoError:
        raise
    except Exception as error:  # safetensors, zip archives and transformers each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CaldpoError(f"these weights cannot be loaded: {reason}", key=str(weights.path or target.name)) from error


def require_vocabulary(path: str, source: ModelSource) -> None:
    """Refuse another reference with another vocabulary than the policy's; reads configurations alone.

    Args:
        path: of the reference, a hub id or folder.
        source: of the policy.

    Raises:
        CaldpoError: it does not exist, or has another vocabulary.
    """
    with torch.device("meta"):
        reference = causal_lm_skeleton(path, key=_REFERENCE_KEY)
    policy = skeleton_of(source)
    if policy is not None:  # else checked once both have loaded
        check_vocabulary(path, reference, policy)


def check_vocabulary(path: str, reference: PreTrainedModel, policy: PreTrainedModel) -> None:
    """Require a reference from ``path`` to have the policy's number of tokens.

    Raises:
        CaldpoError: it has another number.
    """
    if reference.config.vocab_size != policy.config.vocab_size:
        raise vocabulary_error(path, reference.config.vocab_size, policy.config.vocab_size)


def load_reference(path: str | None, dtype: str, source: ModelSource) -> PreTrainedModel:
    """Load the model at ``path``, or the weights that the policy started from.

    Args:
        path: hub id or folder; None takes the policy's start.
        dtype: of the weights, ``reference.dtype`` of the run; ``same`` leaves them as they load.
        source: of the policy.

    Raises:
        CaldpoError: it cannot be loaded.
    """
    model = source.load_policy() if path is None else load_causal_lm(path, key=_REFERENCE_KEY, dtype="auto")
    return model if dtype == "same" else freeze(model, floating_dtype(dtype))


def _load(weights: Weights, source: ModelSource, adapter: AdapterSource, target: Target) -> PreTrainedModel:
    if weights.path is None:
        return source.load_policy()
    if not (weights.path / MANIFEST).is_file():
        if (weights.path / "adapter_config.json").is_file():
            return adapter.restore(source.load_policy(), weights.path)
        return load_causal_lm(
            str(weights.path),
            key="policy",
            trust_remote_code=bool(target.of_run("model.trust_remote_code", False)),
            dtype="auto",
            attn_implementation=target.of_run("model.attention", None),
        )
    return _load_checkpoint(weights.path, source, adapter, target)


def _load_checkpoint(folder: Path, source: ModelSource, adapter: AdapterSource, target: Target) -> PreTrainedModel:
    """Load the start of training, then the weights of a checkpoint into it: those of the adapter alone with one."""
    policy = adapter.apply(source.load_policy())
    trained_in = _WEIGHT_DTYPES.get(str(target.of_run("trainer.precision", "")))
    if trained_in is not None:
        torch.nn.Module.to(policy, dtype=trained_in)
    load_policy_weights(folder, policy)
    return policy


def _not_saved(wanted: object, message: str) -> CaldpoError:
    return CaldpoError(
        message,
        key="checkpoint",
        value=wanted,
        remedy="choose one that it has (or checkpoint=last), or train again with export=true"
        " or callbacks.checkpoint.every=N",
    )
