"""Save and load checkpoints of ZeRO-2 runs: full weights by the first rank, optimiser partitions by every rank.

``step-N/`` holds ``weights.safetensors``, ``optimizer/`` with a safetensors file per rank, ``training.pt`` with the
rest, and the manifest. DeepSpeed's own checkpoints are pickles: they are neither written nor read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from caldpo.checkpointing.checkpoint_io import OWN_KEY, load_training, load_weights, save_error, write_collectively
from caldpo.checkpointing.checkpoint_weights import add_frozen, deduplicate_tied, tensor_bytes
from caldpo.checkpointing.manifest import OPTIMIZER_PARTS, WEIGHTS, Manifest
from caldpo.errors import CaldpoError
from caldpo.utils.collectives import call_on_all_ranks, is_first_rank

PLAIN = "optimizer_plain"  # key of the optimiser's settings
_MASTER = "master"  # the float32 copy of this rank's partition of the weights


def save_zero(checkpoint: dict[str, Any], folder: Path, zero: Any) -> None:
    """Write a checkpoint, whose ``folder`` gets its name when all ranks' parts are complete; all ranks take part.

    Args:
        checkpoint: as Lightning and its hooks made it, with the full weights to be saved in ``state_dict``.
        zero: DeepSpeed's optimiser, stage 2.
    """
    manifest = Manifest(**checkpoint[OWN_KEY]["manifest"])
    weights, ties = deduplicate_tied(checkpoint.pop("state_dict"))
    tensors, groups = _optimizer_state(zero)

    def write(draft: Path) -> None:
        (draft / OPTIMIZER_PARTS).mkdir(exist_ok=True)
        try:
            save_file(tensors, draft / OPTIMIZER_PARTS / _partition_name())
            if is_first_rank():
                save_file(weights, draft / WEIGHTS)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    try:
        write_collectively(folder, manifest, {**checkpoint, PLAIN: groups}, write, ties)
    except OSError as error:
        raise save_error(folder, manifest.step, tensor_bytes([weights, tensors]), error) from error


def load_zero(folder: Path, module: nn.Module, zero: Any) -> dict[str, Any]:
    """Load weights and this rank's partition of the optimiser into the run's own; return the rest."""
    training: dict[str, Any] = {}
    call_on_all_ranks(lambda: training.update(_load(folder, module, zero)))  # a read error on one rank stops all
    return training


def _load(folder: Path, module: nn.Module, zero: Any) -> dict[str, Any]:
    partition = folder / OPTIMIZER_PARTS / _partition_name()
    if not (partition.is_file() and (folder / WEIGHTS).is_file()):
        raise CaldpoError(
            "was written with another trainer.strategy, or by another number of ranks",
            key=str(folder),
            remedy="resume with the trainer.strategy and devices that the run began with",
        )
    training, weights = load_training(folder), load_weights(folder)
    add_frozen(weights, module)
    module.load_state_dict(weights)
    try:
        _set_optimizer_state(zero, load_file(partition), training.pop(PLAIN))
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise CaldpoError(
            f"does not fit this run's optimiser: {' '.join(str(error).split())[:300]}",
            key=str(partition),
            remedy="resume with the model, adapter and optimiser settings the run began with",
        ) from error
    return training


def _optimizer_state(zero: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Collect this rank's float32 copies with the optimiser's state of them, and the groups' settings."""
    inner = zero.optimizer
    tensors: dict[str, Tensor] = {}
    for index, copy in enumerate(zero.single_partition_of_fp32_groups):
        state = {_MASTER: copy.detach(), **inner.state.get(copy, {})}
        assert all(isinstance(value, Tensor) for value in state.values()), "an optimiser state that is no tensor"
        tensors |= {f"{index}.{name}": value for name, value in state.items()}
    return tensors, [{k: v for k, v in group.items() if k != "params"} for group in inner.param_groups]


def _set_optimizer_state(zero: Any, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    inner, state = zero.optimizer, {}
    for index, copy in enumerate(zero.single_partition_of_fp32_groups):
        own = {n.partition(".")[2]: value for n, value in tensors.items() if n.partition(".")[0] == str(index)}
        master = own.pop(_MASTER)
        if master.shape != copy.shape:
            raise ValueError(f"a partition has {master.numel():,} values, where this run's has {copy.numel():,}")
        with torch.no_grad():
            copy.copy_(master)
        state[index] = own
    with_params = [{**group, "params": [index]} for index, group in enumerate(groups)]
    inner.load_state_dict({"state": {k: v for k, v in state.items() if v}, "param_groups": with_params})


def _partition_name() -> str:
    return f"rank-{dist.get_rank():05d}-of-{dist.get_world_size():05d}.safetensors"
