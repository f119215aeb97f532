"""Where a run begins: at step 0, or at its last undamaged checkpoint, to which its files are truncated."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from caldpo.checkpointing.checkpoint_plan import require_same
from caldpo.checkpointing.manifest import FOLDER, SAMPLES, Manifest, checkpoint_folders, newest_intact
from caldpo.errors import CaldpoError
from caldpo.metrics_file import NAME, FirstRows, count_rows, keep_rows
from caldpo.utils.collectives import is_first_rank
from caldpo.utils.stream_console import Console


@dataclass(frozen=True)
class ResumePoint:
    """Where training begins."""

    run_dir: Path
    checkpoint: Path | None = None  # its folder; None begins with step 0
    manifest: Manifest | None = None  # of the checkpoint
    earlier: FirstRows | None = None  # rows of metrics.csv up to the checkpoint; None of a new run

    @classmethod
    def find(cls, run_dir: Path, *, resumed: bool) -> ResumePoint:
        """Find where a run begins, and print it where it was begun before (``resumed``); change nothing in its folder.

        Raises:
            CaldpoError: there are checkpoints and all are damaged or unreadable, or ``metrics.csv`` or
                ``samples.jsonl`` have lost rows that the checkpoint counts on.
        """
        if not resumed:
            return cls(run_dir)
        refused = functools.partial(CaldpoError, key="resume", value=run_dir)
        try:
            folder, manifest, damages = newest_intact(run_dir)
        except OSError as error:
            remedy = "check the disk and repeat the command; nothing was changed"
            raise refused(f"a checkpoint cannot be read: {error}", remedy=remedy) from error
        if damages and manifest is None:
            remedy = f"restore one, or remove {run_dir / FOLDER} to start the run again"
            raise refused(f"no checkpoint of this run is intact: {'; '.join(damages)}", remedy=remedy)
        rows, samples = (manifest.rows, manifest.samples) if manifest else (0, 0)
        there = count_rows(run_dir / NAME)
        size = (run_dir / SAMPLES).stat().st_size if (run_dir / SAMPLES).exists() else 0
        for name, current, saved, unit in ((NAME, there, rows, "rows"), (SAMPLES, size, samples, "bytes")):
            if current < saved:
                raise refused(
                    f"the run cannot go on from {folder}: {name} had {saved} {unit} then and has {current} now",
                    remedy="bring the file back, or start a new run",
                )
        if is_first_rank():
            console = Console(stderr=True)
            place = f"after {manifest.step} optimiser steps" if manifest else "at its beginning: it has no checkpoint"
            for line in (
                *(f"note: {damage}; the one before it is used" for damage in damages),
                f"resuming {place} ({folder or run_dir})",
            ):
                console.print(line, soft_wrap=True, highlight=False, markup=False)
        return cls(run_dir, folder, manifest, FirstRows(run_dir / NAME, rows))

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken up to the checkpoint."""
        return self.manifest.seconds if self.manifest else 0.0

    def require_same_inputs(self, inputs: Mapping[str, str]) -> None:
        """Refuse to resume where the digests of inputs that are known so far are not those of the checkpoint."""
        if self.manifest is not None:
            known = {name: digest for name, digest in self.manifest.identity.items() if name in inputs}
            require_same(known, inputs, self.run_dir)

    def truncate_files(self) -> None:
        """Truncate the run's files to the checkpoint and set damaged ones aside.

        To be called on the first rank, once nothing can refuse to resume any more.
        """
        if self.earlier is None:
            return
        for step, folder in checkpoint_folders(self.run_dir).items():
            if self.manifest is None or step > self.manifest.step:
                folder.rename(_unused(folder.with_name(f"damaged-{folder.name}")))
        rows, samples = (self.manifest.rows, self.manifest.samples) if self.manifest else (0, 0)
        keep_rows(self.run_dir / NAME, rows)
        _truncate(self.run_dir / SAMPLES, samples)


def _truncate(path: Path, size: int) -> None:
    """Truncate an append-only file to its first ``size`` bytes; remove it where that is none."""
    if size == 0:
        path.unlink(missing_ok=True)
    elif path.stat().st_size > size:
        with path.open("rb+") as file:
            file.truncate(size)


def _unused(path: Path) -> Path:
    """Add a number to ``path`` where it exists."""
    number, unused = 1, path
    while unused.exists():
        number += 1
        unused = path.with_name(f"{path.name}-{number}")
    return unused
