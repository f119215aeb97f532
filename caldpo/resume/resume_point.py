"""Where a run begins: at its beginning, or at its last checkpoint that is whole; its files are cut to that moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from caldpo.checkpointing.manifest import FOLDER, SAMPLES, Manifest, checkpoint_folders, newest_intact
from caldpo.errors import CaldpoError
from caldpo.metrics_file import NAME, keep_rows, read_rows


@dataclass(frozen=True)
class Start:
    """Where training begins.

    Args:
        run_dir: the run's folder.
        checkpoint: its folder; None begins with step 0.
        manifest: what it says of itself.
        earlier: rows of ``metrics.csv`` that are kept; None of a new run.
    """

    run_dir: Path
    checkpoint: Path | None = None
    manifest: Manifest | None = None
    earlier: Sequence[Mapping[str, str]] | None = None

    def cut(self) -> None:
        """Cut the run's files back to the checkpoint, and put damaged ones out of the way; for the first rank.

        Nothing is touched before all that could refuse to go on has agreed.
        """
        if self.earlier is None:
            return
        for step, folder in checkpoint_folders(self.run_dir).items():
            if self.manifest is None or step > self.manifest.step:
                folder.rename(_free(folder.with_name(f"damaged-{folder.name}")))
        rows, samples = (self.manifest.rows, self.manifest.samples) if self.manifest else (0, 0)
        keep_rows(self.run_dir / NAME, rows)
        _cut(self.run_dir / SAMPLES, samples)


def find_start(run_dir: Path, *, resumed: bool, first_rank: bool) -> Start:
    """The start of a run in its folder; changes nothing there.

    Args:
        run_dir: the run's folder.
        resumed: go on with what lies there.
        first_rank: the one that speaks.

    Raises:
        CaldpoError: there are checkpoints and none is whole, the disk does not give one, or ``metrics.csv`` or
            ``samples.jsonl`` have lost what the checkpoint counts on.
    """
    if not resumed:
        return Start(run_dir)
    try:
        folder, manifest, damages = newest_intact(run_dir)
    except OSError as error:
        raise CaldpoError(
            f"a checkpoint cannot be read: {error}",
            key="resume",
            value=run_dir,
            remedy="look after the disk and repeat the command; nothing was changed",
        ) from error
    if damages and manifest is None:
        raise CaldpoError(
            f"no checkpoint of this run is whole: {'; '.join(damages)}",
            key="resume",
            value=run_dir,
            remedy=f"bring one back, or remove {run_dir / FOLDER} to begin the run anew",
        )
    rows, samples = (manifest.rows, manifest.samples) if manifest else (0, 0)
    earlier = read_rows(run_dir / NAME)
    size = (run_dir / SAMPLES).stat().st_size if (run_dir / SAMPLES).exists() else 0
    for name, there, written in ((NAME, len(earlier), f"{rows} rows"), (SAMPLES, size, f"{samples} bytes")):
        if there < int(written.split()[0]):
            raise CaldpoError(
                f"the run cannot go on from {folder}: {name} had {written} then and has {there} now",
                key="resume",
                value=run_dir,
                remedy="bring the file back, or start a new run",
            )
    if first_rank:
        console = Console(stderr=True)
        for damage in damages:
            console.print(f"note: {damage}; the one before it is used", soft_wrap=True, highlight=False, markup=False)
        place = f"after {manifest.step} optimiser steps" if manifest else "at its beginning: it has no checkpoint"
        console.print(f"going on {place} ({folder or run_dir})", soft_wrap=True, highlight=False, markup=False)
    return Start(run_dir, folder, manifest, earlier[:rows])


def _cut(path: Path, size: int) -> None:
    """Cut an append-only file back to its first ``size`` bytes."""
    if size == 0:
        path.unlink(missing_ok=True)
    elif path.stat().st_size > size:
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
