"""Writes and reads a checkpoint's folder for Lightning: weights as safetensors, the rest without any code in it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from caldpo.checkpointing.manifest import (
    TRAINING,
    WEIGHT_PARTS,
    WEIGHTS,
    Manifest,
    checkpoint_folders,
    describe_files,
    read_manifest,
)
from caldpo.errors import CaldpoError
from caldpo.utils.atomic_io import atomic_folder

OURS = "caldpo"  # key of what a checkpoint holds beside Lightning's own
_FAILURES = (OSError, RuntimeError, SafetensorError)  # of a disk: the system's, torch's, safetensors' own


class CheckpointFolders(CheckpointIO):
    """Lightning's checkpoints as folders that are whole or not there; see :mod:`caldpo.checkpointing.manifest`.

    The checkpoint's own key ``caldpo`` becomes the manifest (``manifest``) and a part of ``training.pt`` (the rest).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the folder; what was there before stays until it is complete.

        Raises:
            CaldpoError: it cannot be written, with what it takes and what is free.
        """
        folder = Path(path)
        if OURS in checkpoint:
            manifest = Manifest(**checkpoint[OURS]["manifest"])
        else:  # somebody else saves, in a way of his own
            manifest = Manifest(step=checkpoint["global_step"], rows=0, samples=0, seconds=0.0)
        rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
        weights, same = without_ties(checkpoint["state_dict"])
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with atomic_folder(folder) as draft:
                save_file(weights, draft / WEIGHTS)
                write_training(rest, draft / TRAINING)
                replace(manifest, same=same, files=describe_files(draft)).write(draft)
        except _FAILURES as error:
            raise cannot_save(folder, manifest.step, size_of(checkpoint), error) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Everything that was saved, on the CPU. No pickle is run, whatever ``weights_only`` says.

        Raises:
            CaldpoError: it holds more than tensors and plain values, or cannot be read.
        """
        folder = Path(path)
        return load_training(folder) | {"state_dict": load_weights(folder)}

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the folder: under another name first, so that a kill leaves no half of it under its own."""
        folder = Path(path)
        leaving = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(leaving, ignore_errors=True)
        folder.rename(leaving)
        shutil.rmtree(leaving, ignore_errors=True)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint on the CPU, by the names of the training module (``policy.``...), ties restored.

    Raises:
        CaldpoError: they cannot be read.
    """
    with _readable(folder):
        if (folder / WEIGHT_PARTS).is_dir():
            from caldpo.checkpointing.fsdp_checkpoint import load_whole_weights  # which needs this module

            weights = load_whole_weights(folder)
        else:
            weights = load_file(folder / WEIGHTS)
        return weights | {name: weights[kept] for name, kept in read_manifest(folder).same.items()}


def load_training(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its weights, on the CPU.

    Raises:
        CaldpoError: it holds more than tensors and plain values, or cannot be read.
    """
    with _readable(folder):
        rest: dict[str, Any] = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        return rest


def write_training(rest: dict[str, Any], path: Path) -> None:
    """Write it."""
    with path.open("wb") as file:
        torch.save(rest, file)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a zip archive, safetensors and the reader of plain values have errors of their own
        raise CaldpoError(
            "cannot be read: it is damaged, or holds something else than tensors and plain values",
            key=str(folder / TRAINING),
            remedy="remove this checkpoint: resume= then takes the one before it",
        ) from error


def without_ties(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the other names of those that have several: safetensors keeps no shared memory."""
    kept: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, value in state.items():
        tensor = value.detach()
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            same[name] = seen[place]
            continue
        seen[place] = name
        storage = tensor.untyped_storage().data_ptr()
        shared = storage in storages
        storages.add(storage)
        kept[name] = tensor.clone() if shared else tensor.contiguous()
    return kept, same


def size_of(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0


def cannot_save(folder: Path, step: int, needed: int, error: BaseException) -> CaldpoError:
    """What to say where a checkpoint cannot be written."""
    there = list(checkpoint_folders(folder.parent.parent))
    last = f"the last good one is that of step {there[-1]}" if there else "there is no earlier one"
    why = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
    try:
        free = f"{shutil.disk_usage(folder.parent).free / 2**20:,.0f} MiB are free there"
    except OSError:
        free = "what is free there is not known"
    return CaldpoError(
        f"the checkpoint of step {step} cannot be written ({why}): it takes {needed / 2**20:,.1f} MiB, and {free};"
        f" {last}",
        key=str(folder),
        remedy="make room (callbacks.checkpoint.keep says how many are kept) and go on with"
        f" python -m caldpo.train resume={folder.parent.parent}",
    )
