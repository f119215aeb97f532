"""Checkpoints of ZeRO-2: whole weights by the first rank, and of the optimiser every rank its own part.

``step-N/`` holds ``weights.safetensors``, ``optimizer/`` with a safetensors file a rank, ``training.pt`` with the rest,
and the manifest. DeepSpeed's own checkpoints are pickles: they are neither written nor read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from caldpo.checkpointing.checkpoint_io import OURS, cannot_save, load_training, load_weights, size_of, without_ties
from caldpo.checkpointing.collective_write import write_together
from caldpo.checkpointing.frozen_weights import add_frozen
from caldpo.checkpointing.manifest import OPTIMIZER_PARTS, WEIGHTS, Manifest
from caldpo.errors import CaldpoError
from caldpo.utils.collectives import call_on_all_ranks, is_first_rank

PLAIN = "optimizer_plain"  # key of the optimiser's settings
_MASTER = "master"  # the float32 copy of this rank's part of the weights


def save_zero(checkpoint: dict[str, Any], folder: Path, zero: Any) -> None:
    """Write the checkpoint; all ranks have to take part.

    Args:
        checkpoint: as Lightning and its hooks made it; ``state_dict`` has the whole weights that are to be saved.
        folder: gets its name when all ranks' parts are complete.
        zero: DeepSpeed's optimiser, stage 2.

    Raises:
        CaldpoError: one of the ranks cannot write, with what it takes and what is free.
    """
    manifest = Manifest(**checkpoint[OURS]["manifest"])
    weights, same = without_ties(checkpoint.pop("state_dict"))
    tensors, groups = _optimizer_state(zero)

    def write(draft: Path) -> None:
        (draft / OPTIMIZER_PARTS).mkdir(exist_ok=True)
        try:
            save_file(tensors, draft / OPTIMIZER_PARTS / _part())
            if is_first_rank():
                save_file(weights, draft / WEIGHTS)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    try:
        write_together(folder, manifest, {**checkpoint, PLAIN: groups}, write, same)
    except OSError as error:
        raise cannot_save(folder, manifest.step, size_of([weights, tensors]), error) from error


def load_zero(folder: Path, module: nn.Module, zero: Any) -> dict[str, Any]:
    """Put a checkpoint's weights and this rank's part of the optimiser into the run's own.

    Returns:
        The rest of the checkpoint.

    Raises:
        CaldpoError: it was written by another strategy, by another number of ranks, or of another model.
    """
    read: dict[str, Any] = {}
    call_on_all_ranks(lambda: read.update(_read(folder, module, zero)))  # what one rank cannot read stops all
    return read


def _read(folder: Path, module: nn.Module, zero: Any) -> dict[str, Any]:
    part = folder / OPTIMIZER_PARTS / _part()
    if not (part.is_file() and (folder / WEIGHTS).is_file()):
        raise CaldpoError(
            "was written with another trainer.strategy, or by another number of ranks",
            key=str(folder),
            remedy="resume with the trainer.strategy and devices that the run began with",
        )
    rest, weights = load_training(folder), load_weights(folder)
    add_frozen(weights, module)
    module.load_state_dict(weights)
    try:
        _set_optimizer_state(zero, load_file(part), rest.pop(PLAIN))
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise CaldpoError(
            f"does not fit this run's optimiser: {' '.join(str(error).split())[:300]}",
            key=str(part),
            remedy="resume with the model, adapter and optimiser settings the run began with",
        ) from error
    return rest


def _optimizer_state(zero: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """This rank's float32 copies and the optimiser's state of them, and the settings of the groups."""
    inner = zero.optimizer
    tensors: dict[str, Tensor] = {}
    for place, copy in enumerate(zero.single_partition_of_fp32_groups):
        state = {_MASTER: copy.detach(), **inner.state.get(copy, {})}
        assert all(isinstance(value, Tensor) for value in state.values()), "an optimiser's state that is no tensor"
        tensors |= {f"{place}.{name}": value for name, value in state.items()}
    return tensors, [{k: v for k, v in group.items() if k != "params"} for group in inner.param_groups]


def _set_optimizer_state(zero: Any, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    inner, state = zero.optimizer, {}
    for place, copy in enumerate(zero.single_partition_of_fp32_groups):
        own = {n.partition(".")[2]: value for n, value in tensors.items() if n.partition(".")[0] == str(place)}
        saved = own.pop(_MASTER)
        if saved.shape != copy.shape:
            raise ValueError(f"a part has {saved.numel():,} values, where this run's has {copy.numel():,}")
        with torch.no_grad():
            copy.copy_(saved)
        state[place] = own
    with_params = [{**group, "params": [place]} for place, group in enumerate(groups)]
    inner.load_state_dict({"state": {k: v for k, v in state.items() if v}, "param_groups": with_params})


def _part() -> str:
    return f"rank-{dist.get_rank():05d}-of-{dist.get_world_size():05d}.safetensors"
