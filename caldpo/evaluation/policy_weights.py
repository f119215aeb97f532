"""The weights of a run's policy: its export, its adapter, or one of its checkpoints. No pickle is ever run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from caldpo.checkpointing.checkpoint_io import load_weights as load_weights_of
from caldpo.checkpointing.checkpoint_weights import add_frozen
from caldpo.checkpointing.manifest import MANIFEST, OPTIMIZER_PARTS, DamagedCheckpointError, verify
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluation_target import Target
from caldpo.models.adapters import AdapterSource
from caldpo.models.hub_model import load_causal_lm
from caldpo.models.model_source import ModelSource
from caldpo.utils.atomic_io import known_digest

_LOADED = (".safetensors", ".json", ".py", ".jinja", ".model", ".txt")  # endings of what a model is loaded from
_PREFIX = "policy."  # of the policy's weights in the state of the training module
_WEIGHTS = {"bf16-true": torch.bfloat16, "64-true": torch.float64}  # precisions that change a model's own dtype


@dataclass(frozen=True)
class Weights:
    """Where weights lie.

    Args:
        step: optimiser steps they have seen; None of a model that is no run's.
        path: ``policy/`` of a run, or a checkpoint; None: the model itself.
    """

    step: int | None
    path: Path | None

    def stamp(self) -> list[list[Any]]:
        """Name, size and SHA-256 of the files that are loaded, weights first: times can stay when contents change."""
        if self.path is None:
            return []
        files = [f for f in self.path.rglob("*") if f.suffix in _LOADED and f.parent.name != OPTIMIZER_PARTS]
        ordered = sorted(files, key=lambda file: (file.suffix != _LOADED[0], file))
        return [[str(f.relative_to(self.path)), f.stat().st_size, known_digest(f)] for f in ordered if f.is_file()]


def find_weights(target: Target, wanted: Literal["final", "last"] | int) -> Weights:
    """The weights that ``checkpoint=`` asks for.

    Raises:
        CaldpoError: the run has not kept them.
    """
    if target.run is None:
        return Weights(None, None)
    saved = target.checkpoints()
    there = f"it has checkpoints of step {', '.join(map(str, saved))}" if saved else "it has no checkpoint"
    if isinstance(wanted, int):
        if wanted in saved:
            return Weights(wanted, saved[wanted])
        if wanted == 0:
            return Weights(0, None)  # what training started from
        raise _missing(target, wanted, f"no checkpoint of this step: {there}")
    policy = target.run / "policy"
    if policy.is_dir() and any(policy.glob("*.safetensors")):
        return Weights(target.steps, policy)
    if saved and (wanted == "last" or max(saved) == target.steps):
        return Weights(max(saved), saved[max(saved)])
    status = target.summary.get("status", "unknown")
    raise _missing(target, wanted, f"{target.run} (status: {status}) holds no policy/, and {there}")


def load_weights(weights: Weights, source: ModelSource, adapter: AdapterSource, target: Target) -> PreTrainedModel:
    """The policy with these weights, in evaluation mode.

    Raises:
        CaldpoError: the files are damaged, or of another model than the run's configuration says.
    """
    try:
        return _load(weights, source, adapter, target).eval().requires_grad_(False)
    except CaldpoError:
        raise
    except Exception as error:  # safetensors, zip archives and transformers each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CaldpoError(f"these weights cannot be loaded: {reason}", key=str(weights.path or target.name)) from error


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
    return _of_checkpoint(weights.path, source, adapter, target)


def _of_checkpoint(folder: Path, source: ModelSource, adapter: AdapterSource, target: Target) -> PreTrainedModel:
    """What training started from, with the weights of a checkpoint: those of an adapter alone where there is one."""
    try:
        verify(folder)
    except DamagedCheckpointError as damage:
        raise CaldpoError(f"this checkpoint is damaged: {damage}", key=str(folder)) from damage
    state = {name.removeprefix(_PREFIX): value for name, value in load_weights_of(folder).items()}
    policy = adapter.apply(source.load_policy())
    trained_in = _WEIGHTS.get(str(target.of_run("trainer.precision", "")))
    if trained_in is not None:
        torch.nn.Module.to(policy, dtype=trained_in)
    add_frozen(state, policy)
    policy.load_state_dict(state)
    return policy


def _missing(target: Target, wanted: object, why: str) -> CaldpoError:
    return CaldpoError(
        why,
        key="checkpoint",
        value=wanted,
        remedy="choose one that is there (or checkpoint=last), or train again with export=true"
        " or callbacks.checkpoint.every=N",
    )
