"""Where a run begins: at its beginning, or at its last checkpoint that is whole; its files are cut to that moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from caldpo.checkpoints.manifest import SAMPLES, Manifest, checkpoint_folders, newest_whole
from caldpo.errors import CaldpoError
from caldpo.metrics_file import NAME, keep_rows


@dataclass(frozen=True)
class Start:
    """Where training begins.

    Args:
        checkpoint: its folder; None begins with step 0.
        manifest: what it says of itself.
        earlier: rows of ``metrics.csv`` that were kept; None of a new run.
    """

    checkpoint: Path | None = None
    manifest: Manifest | None = None
    earlier: Sequence[Mapping[str, str]] | None = None


def find_start(run_dir: Path, *, resumed: bool, first_rank: bool) -> Start:
    """The start of a run in its folder.

    Args:
        run_dir: the run's folder.
        resumed: go on with what lies there.
        first_rank: the one that cuts the files and speaks.

    Raises:
        CaldpoError: ``metrics.csv`` or ``samples.jsonl`` have lost what the checkpoint counts on.
    """
    if not resumed:
        return Start()
    folder, manifest, damages = newest_whole(run_dir)
    if not first_rank:
        return Start(folder, manifest)
    console = Console(stderr=True)
    for damage in damages:
        console.print(f"note: {damage}; the one before it is used", soft_wrap=True, highlight=False, markup=False)
    for step, damaged in checkpoint_folders(run_dir).items():
        if manifest is None or step > manifest.step:
            damaged.rename(_free(damaged.with_name(f"damaged-{damaged.name}")))
    rows, samples = (manifest.rows, manifest.samples) if manifest else (0, 0)
    try:
        earlier = keep_rows(run_dir / NAME, rows)
        _cut(run_dir / SAMPLES, samples)
    except ValueError as error:
        raise CaldpoError(
            f"the run cannot go on from {folder}: {error}",
            key="resume",
            value=run_dir,
            remedy="bring the file back, or start a new run",
        ) from error
    there = f"after {manifest.step} optimiser steps" if manifest else "at its beginning: it has no checkpoint"
    console.print(f"going on {there} ({folder or run_dir})", soft_wrap=True, highlight=False, markup=False)
    return Start(folder, manifest, earlier)


def _cut(path: Path, size: int) -> None:
    """Cut an append-only file back to its first ``size`` bytes."""
    there = path.stat().st_size if path.exists() else 0
    if there < size:
        raise ValueError(f"{path} has {there:,} bytes, {size:,} were written")
    if size == 0:
        path.unlink(missing_ok=True)
    elif there > size:
        with path.open("rb+") as file:
            file.truncate(size)


def _free(path: Path) -> Path:
    """``path``, or with a number after it where it is taken."""
    taken = 1
    free = path
    while free.exists():
        taken += 1
        free = path.with_name(f"{path.name}-{taken}")
    return free
