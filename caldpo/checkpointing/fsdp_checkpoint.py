"""Checkpoints of sharded models: every rank writes its own parts, and the folder is whole or not there.

``step-N/`` holds ``weights/`` and ``optimizer/``, a safetensors file a rank in each (PyTorch's distributed checkpoint
in its Hugging Face format: which part of a tensor a file has stands in its header), ``training.pt`` with the rest, and
the manifest. They are read by as many ranks as wrote them, or by one that puts the tensors together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from caldpo.checkpointing.checkpoint_io import OURS, cannot_save, load_training, size_of
from caldpo.checkpointing.collective_write import write_together
from caldpo.checkpointing.frozen_weights import frozen_names
from caldpo.checkpointing.manifest import OPTIMIZER_PARTS, WEIGHT_PARTS, Manifest
from caldpo.distributed.fsdp import reshard, tied_names
from caldpo.errors import CaldpoError
from caldpo.utils.collectives import call_on_all_ranks

PLAIN = "optimizer_plain"  # key of the optimisers' values that are no tensors
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_sharded(
    checkpoint: dict[str, Any], folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Write the checkpoint; all ranks have to take part.

    Args:
        checkpoint: as Lightning and its hooks made it: ``state_dict`` has this rank's parts of what is to be saved.
        folder: gets its name when all ranks' parts are complete.
        module, optimizers: of the run.

    Raises:
        CaldpoError: one of the ranks cannot write, with what it takes and what is free.
    """
    manifest = Manifest(**checkpoint[OURS]["manifest"])
    same = {name: kept for name, kept in tied_names(module).items() if kept in checkpoint["state_dict"]}
    weights = {name: value for name, value in checkpoint.pop("state_dict").items() if name not in same}
    tensors, plain = _optimizer_state(module, optimizers)

    def write(draft: Path) -> None:
        _write(weights, draft / WEIGHT_PARTS)
        _write(tensors, draft / OPTIMIZER_PARTS)

    try:
        write_together(folder, manifest, {**checkpoint, PLAIN: plain}, write, same)
    except (OSError, dcp.api.CheckpointException) as error:
        raise cannot_save(folder, manifest.step, size_of([weights, tensors]), error) from error


def load_sharded(folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Put a checkpoint's weights and optimiser states into the run's own; all ranks have to take part.

    Returns:
        The rest of the checkpoint, with an empty ``state_dict``.

    Raises:
        CaldpoError: it is no checkpoint of a sharded model, or of another one.
    """
    rest: dict[str, Any] = {}
    call_on_all_ranks(lambda: rest.update(_rest(folder)))  # what one rank cannot read stops all
    frozen, same = frozen_names(module), tied_names(module)
    weights = {name: value for name, value in module.state_dict().items() if name not in frozen and name not in same}
    _read(weights, folder / WEIGHT_PARTS)
    set_model_state_dict(module, weights, options=StateDictOptions(strict=False))
    tensors, _ = _optimizer_state(module, optimizers)
    _read(tensors, folder / OPTIMIZER_PARTS)
    state = {**tensors, **rest.pop(PLAIN)}
    set_optimizer_state_dict(module, list(optimizers), state, options=_FLAT)
    return rest


def _rest(folder: Path) -> dict[str, Any]:
    """What a checkpoint of a sharded model holds beside its parts."""
    if not (folder / WEIGHT_PARTS).is_dir():
        raise CaldpoError(
            "was written by a run with whole weights, this one divides them",
            key=str(folder),
            remedy="resume with the trainer.strategy the run began with",
        )
    return load_training(folder)


def load_whole_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a sharded checkpoint put together, on the CPU, by one process alone."""
    reader = HuggingFaceStorageReader(str(folder / WEIGHT_PARTS))
    described = reader.read_metadata().state_dict_metadata
    weights = {
        name: torch.empty(said.size, dtype=said.properties.dtype)  # type: ignore[union-attr]
        for name, said in described.items()
    }
    dcp.load(weights, storage_reader=HuggingFaceStorageReader(str(folder / WEIGHT_PARTS)), no_dist=True)
    return weights


def _optimizer_state(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """This rank's parts of the optimisers' states by the weights' names, and what of them is no tensor."""
    reshard(module)
    state: dict[str, Any] = get_optimizer_state_dict(module, list(optimizers), options=_FLAT)
    found = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    # a rate that is a tensor is the same one for all weights of its group, and a file may hold none twice
    tensors = {name: value if value.ndim else value.clone() for name, value in found.items()}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def _write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer)


def _read(tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    except (dcp.api.CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise CaldpoError(
            f"does not fit this run's model: {' '.join(str(error).split())[:300]}",
            key=str(folder),
            remedy="resume with the model and adapter settings the run began with",
        ) from error
