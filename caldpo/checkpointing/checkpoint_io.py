"""Write and read checkpoint folders: weights as safetensors, the rest as tensors and plain values, no code.

A folder gets its name once it is complete, whether one rank writes it or all of them together.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from caldpo.checkpointing.checkpoint_weights import add_frozen, deduplicate_tied, tensor_bytes
from caldpo.checkpointing.manifest import (
    TRAINING,
    WEIGHT_PARTS,
    WEIGHTS,
    DamagedCheckpointError,
    Manifest,
    checkpoint_folders,
    describe_files,
    read_manifest,
    verify,
)
from caldpo.errors import CaldpoError
from caldpo.utils.atomic_io import atomic_folder
from caldpo.utils.collectives import call_on_all_ranks, is_first_rank

OWN_KEY = "caldpo"  # of a checkpoint: what it holds besides Lightning's own entries
_POLICY = "policy."  # before the names of its weights in the training module
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # of a full disk: the system's, torch's, safetensors' own
_VISIBLE_WITHIN = 60.0  # seconds that a network file system may take to show a file to another machine


class CheckpointFolders(CheckpointIO):
    """Store Lightning's checkpoints as folders that are complete or absent; see :mod:`caldpo.checkpointing.manifest`.

    Of the checkpoint's own entry ``caldpo``, ``manifest`` becomes the manifest and the rest a part of ``training.pt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the folder; an earlier one of this name stays until the new one is complete.

        Raises:
            CaldpoError: it cannot be written, with its size and the free space.
        """
        folder = Path(path)
        if OWN_KEY in checkpoint:
            manifest = Manifest(**checkpoint[OWN_KEY]["manifest"])
        else:  # saved by other code than the project's callback
            manifest = Manifest(step=checkpoint["global_step"], rows=0, samples=0, seconds=0.0)
        training = {key: value for key, value in checkpoint.items() if key != "state_dict"}
        weights, ties = deduplicate_tied(checkpoint["state_dict"])
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with atomic_folder(folder) as draft:
                save_file(weights, draft / WEIGHTS)
                write_training(training, draft / TRAINING)
                replace(manifest, same=ties, files=describe_files(draft)).write(draft)
        except _WRITE_ERRORS as error:
            raise save_error(folder, manifest.step, tensor_bytes(checkpoint), error) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load all that was saved, on the CPU. No pickle is run, whatever ``weights_only`` is."""
        folder = Path(path)
        return load_training(folder) | {"state_dict": load_weights(folder)}

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the folder, renamed first, so that a kill leaves no half of it under its own name."""
        folder = Path(path)
        renamed = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(renamed, ignore_errors=True)
        folder.rename(renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Load a checkpoint's full weights on the CPU, by the names of the training module (``policy.``...), ties restored.

    Raises:
        CaldpoError: they cannot be read.
    """
    with _readable(folder):
        sharded = (folder / WEIGHT_PARTS).is_dir()
        weights = _merge_shards(folder / WEIGHT_PARTS) if sharded else load_file(folder / WEIGHTS)
        return weights | {name: weights[first] for name, first in read_manifest(folder).same.items()}


def policy_weights(folder: Path) -> dict[str, Tensor]:
    """Verify a checkpoint, and load the trained weights by the policy's own names, on the CPU.

    Raises:
        CaldpoError: the checkpoint is damaged.
    """
    try:
        verify(folder)
    except DamagedCheckpointError as damage:
        raise CaldpoError(
            f"this checkpoint is damaged: {damage}", key=str(folder), remedy="remove it, to use the one before it"
        ) from damage
    weights = load_weights(folder)  # and what a loss remembers
    return {name.removeprefix(_POLICY): value for name, value in weights.items() if name.startswith(_POLICY)}


def load_into_policy(policy: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load a checkpoint's :func:`policy_weights` into the policy; the frozen base of an adapter stays.

    Raises:
        CaldpoError: the checkpoint is of another policy.
    """
    add_frozen(weights, policy)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:  # a shape differs
        raise CaldpoError(
            f"this checkpoint is of another policy: {' '.join(str(error).split())[:300]}",
            key=str(folder),
            remedy="give the model and adapter that the run began with",
        ) from error


def load_training(folder: Path) -> dict[str, Any]:
    """Load what a checkpoint holds besides its weights, on the CPU.

    Raises:
        CaldpoError: it holds more than tensors and plain values, or cannot be read.
    """
    with _readable(folder):
        training: dict[str, Any] = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        return training


def write_training(training: dict[str, Any], path: Path) -> None:
    """Write what a checkpoint holds besides its weights."""
    with path.open("wb") as file:
        torch.save(training, file)


def write_collectively(
    folder: Path, manifest: Manifest, training: dict[str, Any], write: Callable[[Path], None], ties: dict[str, str]
) -> None:
    """Write a checkpoint's folder from all ranks, which have to take part, and fail together.

    Args:
        folder: of the checkpoint.
        manifest: without files.
        training: content of ``training.pt``, written by the first rank.
        write: writes this rank's tensors as safetensors into the draft folder.
        ties: as of :func:`deduplicate_tied`.

    Raises:
        OSError: a rank cannot write.
    """
    first = is_first_rank()
    with contextlib.ExitStack() as naming:

        def begin() -> str | None:
            if not first:
                return None
            folder.parent.mkdir(parents=True, exist_ok=True)
            return str(naming.enter_context(atomic_folder(folder)))

        def describe() -> dict[str, Any]:
            if first:
                write_training(training, draft / TRAINING)
            return describe_files(draft, _own_files(draft))

        def finish() -> None:
            if first:
                files = {name: entry for part in described for name, entry in part.items()}
                _wait_for_files(draft, files)
                replace(manifest, same=ties, files=files).write(draft)
                naming.pop_all().close()

        draft = Path(str(call_on_all_ranks(begin)[0]))
        call_on_all_ranks(lambda: write(draft))
        described = call_on_all_ranks(describe)
        call_on_all_ranks(finish)


def save_error(folder: Path, step: int, needed: int, error: BaseException) -> CaldpoError:
    """Make the error of a checkpoint of ``needed`` bytes that cannot be written."""
    saved = list(checkpoint_folders(folder.parent.parent))
    last = f"the last good one is that of step {saved[-1]}" if saved else "there is no earlier one"
    reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
    try:
        free = f"{shutil.disk_usage(folder.parent).free / 2**20:,.0f} MiB are free there"
    except OSError:
        free = "the free space there is unknown"
    return CaldpoError(
        f"the checkpoint of step {step} cannot be written ({reason}): it takes {needed / 2**20:,.1f} MiB, and {free};"
        f" {last}",
        key=str(folder),
        remedy="make room (callbacks.checkpoint.keep limits how many are kept) and resume with"
        f" python -m caldpo.train resume={folder.parent.parent}",
    )


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zip archives, safetensors and the weights-only unpickler have errors of their own
        raise CaldpoError(
            "cannot be read: it is damaged, or holds something else than tensors and plain values",
            key=str(folder / TRAINING),
            remedy="remove this checkpoint: resume= then takes the one before it",
        ) from error


def _merge_shards(folder: Path) -> dict[str, Tensor]:
    """Merge the weights that several ranks wrote, in one process."""
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
        for name, entry in metadata.items()
    }
    dcp.load(weights, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return weights


def _own_files(draft: Path) -> list[str]:
    """List the files this rank wrote: another rank's may not be visible here yet."""
    rank = dist.get_rank()
    prefixes = (f"shard-{rank + 1:05d}-", f"rank-{rank:05d}-")  # PyTorch's names, and the project's
    parts = [path for path in draft.rglob("*.safetensors") if path.name.startswith(prefixes)]
    full = [draft / name for name in (WEIGHTS, TRAINING) if is_first_rank() and (draft / name).exists()]
    return sorted(path.relative_to(draft).as_posix() for path in (*parts, *full))


def _wait_for_files(draft: Path, files: Collection[str]) -> None:
    """Wait until the first rank sees what the others wrote; an OSError where their folder is another."""
    deadline = time.monotonic() + _VISIBLE_WITHIN
    while missing := [name for name in files if not (draft / name).exists()]:
        if time.monotonic() > deadline:
            raise OSError(f"{missing[0]} of another rank is not visible: all nodes have to share the run's folder")
        time.sleep(0.1)
