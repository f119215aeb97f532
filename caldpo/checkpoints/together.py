"""A checkpoint's folder that several ranks write together: it gets its name when all of them are done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from caldpo.checkpoints.folder import write_training
from caldpo.checkpoints.manifest import TRAINING, Manifest, describe_files
from caldpo.files import whole_folder
from caldpo.ranks import is_first_rank, settled


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
            return str(naming.enter_context(whole_folder(folder)))

        def describe() -> dict[str, Any]:
            if first:
                write_training(training, draft / TRAINING)
            return describe_files(draft, _mine(draft))

        def end() -> None:
            if first:
                files = {name: said for part in described for name, said in part.items()}
                replace(manifest, same=same, files=files).write(draft)
                naming.pop_all().close()

        draft = Path(str(settled(begin)[0]))
        settled(lambda: write(draft))
        described: Sequence[dict[str, Any]] = settled(describe)
        settled(end)


def _mine(draft: Path) -> list[str]:
    """The files that this rank reads for their digests: each is read by one."""
    parts = sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*.safetensors"))
    return parts[dist.get_rank() :: dist.get_world_size()] + ([TRAINING] if is_first_rank() else [])
