"""A checkpoint's folder that several ranks write together: it gets its name when all of them are done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from caldpo.checkpointing.checkpoint_io import write_training
from caldpo.checkpointing.manifest import TRAINING, WEIGHTS, Manifest, describe_files
from caldpo.utils.atomic_io import atomic_folder
from caldpo.utils.collectives import call_on_all_ranks, is_first_rank

_PATIENCE = 60.0  # seconds that a network's file system may take to show a file to another machine


def write_together(
    folder: Path, manifest: Manifest, training: dict[str, Any], write: Callable[[Path], None], same: dict[str, str]
) -> None:
    """Write the folder; all ranks have to take part, and fail together.

    Args:
        folder: of the checkpoint.
        manifest: without files.
        training: what goes into ``training.pt``, by the first rank.
        write: writes this rank's tensors as safetensors below a folder, which is there.
        same: names of tied weights, each with the name that is kept.

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
            return describe_files(draft, _mine(draft))

        def end() -> None:
            if first:
                files = {name: said for part in described for name, said in part.items()}
                _require_shared(draft, files)
                replace(manifest, same=same, files=files).write(draft)
                naming.pop_all().close()

        draft = Path(str(call_on_all_ranks(begin)[0]))
        call_on_all_ranks(lambda: write(draft))
        described: Sequence[dict[str, Any]] = call_on_all_ranks(describe)
        call_on_all_ranks(end)


def _mine(draft: Path) -> list[str]:
    """The files that this rank has written, as it sees them itself: another's may not be visible here yet."""
    rank = dist.get_rank()
    own = (f"shard-{rank + 1:05d}-", f"rank-{rank:05d}-")  # PyTorch's names, and ours
    parts = [path for path in draft.rglob("*.safetensors") if path.name.startswith(own)]
    whole = [draft / name for name in (WEIGHTS, TRAINING) if is_first_rank() and (draft / name).exists()]
    return sorted(path.relative_to(draft).as_posix() for path in (*parts, *whole))


def _require_shared(draft: Path, files: Collection[str]) -> None:
    """Wait until the first rank sees what the others have written.

    Raises:
        OSError: it does not, so that the ranks do not write into one folder.
    """
    until = time.monotonic() + _PATIENCE
    while missing := [name for name in files if not (draft / name).exists()]:
        if time.monotonic() > until:
            raise OSError(f"{missing[0]} of another rank is not there: all nodes have to share the run's folder")
        time.sleep(0.1)
