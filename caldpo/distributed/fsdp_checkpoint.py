"""Save and load checkpoints of FSDP2 runs: every rank its own shards, in a folder that is complete or absent.

``step-N/`` holds ``weights/`` and ``optimizer/``, each with a safetensors file per rank (PyTorch's distributed
checkpoint in its Hugging Face format, whose header tells which slice of a tensor a file has), ``training.pt`` with the
rest, and the manifest. It is loaded by as many ranks as wrote it;
:func:`caldpo.checkpointing.checkpoint_io.load_weights` merges the weights in one process.
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

from caldpo.checkpointing.checkpoint_io import OWN_KEY, load_training, save_error, write_collectively
from caldpo.checkpointing.checkpoint_weights import frozen_names, tensor_bytes
from caldpo.checkpointing.manifest import OPTIMIZER_PARTS, WEIGHT_PARTS, Manifest
from caldpo.distributed.fsdp import reshard, tied_names
from caldpo.errors import CaldpoError
from caldpo.utils.collectives import call_on_all_ranks

PLAIN = "optimizer_plain"  # key of the optimisers' values that are no tensors
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_sharded(
    checkpoint: dict[str, Any], folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Write a checkpoint, whose ``folder`` gets its name when all ranks' shards are complete; all ranks take part."""
    manifest = Manifest(**checkpoint[OWN_KEY]["manifest"])
    ties = {name: first for name, first in tied_names(module).items() if first in checkpoint["state_dict"]}
    weights = {name: value for name, value in checkpoint.pop("state_dict").items() if name not in ties}
    tensors, plain = _optimizer_state(module, optimizers)

    def write(draft: Path) -> None:
        _write(weights, draft / WEIGHT_PARTS)
        _write(tensors, draft / OPTIMIZER_PARTS)

    try:
        write_collectively(folder, manifest, {**checkpoint, PLAIN: plain}, write, ties)
    except (OSError, dcp.api.CheckpointException) as error:
        raise save_error(folder, manifest.step, tensor_bytes([weights, tensors]), error) from error


def load_sharded(folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Load weights and optimiser states into the run's own; return the rest. All ranks take part."""
    training: dict[str, Any] = {}
    call_on_all_ranks(lambda: training.update(_load_rest(folder)))  # a read error on one rank stops all
    frozen, ties = frozen_names(module), tied_names(module)
    weights = {name: value for name, value in module.state_dict().items() if name not in frozen and name not in ties}
    _read(weights, folder / WEIGHT_PARTS)
    set_model_state_dict(module, weights, options=StateDictOptions(strict=False))
    tensors, _ = _optimizer_state(module, optimizers)
    _read(tensors, folder / OPTIMIZER_PARTS)
    state = {**tensors, **training.pop(PLAIN)}
    set_optimizer_state_dict(module, list(optimizers), state, options=_FLAT)
    return training


def _load_rest(folder: Path) -> dict[str, Any]:
    if not (folder / WEIGHT_PARTS).is_dir():
        raise CaldpoError(
            "was written by a run with full weights on each device, and this run shards them",
            key=str(folder),
            remedy="resume with the trainer.strategy the run began with",
        )
    return load_training(folder)


def _optimizer_state(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the optimisers' state, by the weights' names, into this rank's tensors and plain values."""
    reshard(module)
    state: dict[str, Any] = get_optimizer_state_dict(module, list(optimizers), options=_FLAT)
    # a learning rate that is a tensor is shared by all weights of its group, and a file may hold none twice
    tensors = {n: value if value.ndim else value.clone() for n, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def _write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _read(tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    except (dcp.api.CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise CaldpoError(
            f"does not fit this run's model: {' '.join(str(error).split())[:300]}",
            key=str(folder),
            remedy="resume with the model and adapter settings the run began with",
        ) from error
