"""The runs of folders, read again as their files change."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldpo.checkpointing.manifest import SAMPLES
from caldpo.config.find_runs import walk_runs
from caldpo.config.run_lifecycle import RUNNING
from caldpo.config.run_lock import is_held
from caldpo.config.summary_file import SUMMARY
from caldpo.evaluation.suite_base import FOLDER
from caldpo.metrics_file import NAME
from caldpo.report.live.followed_curves import FollowedCurves
from caldpo.report.page.page_samples import read_lines
from caldpo.report.read_runs import in_order, read_or_named
from caldpo.report.run_files import Run
from caldpo.report.shown_metrics import is_drawn

_HYDRA = (".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml")
_READ = (NAME, SUMMARY, SAMPLES, "config.yaml", *_HYDRA)  # files of a run that a page is made of, but evaluations

Stamp = tuple[Any, ...]  # differs where files do


@dataclass
class WatchedRun:
    """A run as it was read last."""

    run: Run
    stamp: Stamp
    shown: Stamp  # of what a page shows of it
    step: int | None  # the last that it logged
    first: tuple[float | None, int | None]  # when its metrics were first seen to be written, and the step they ended at
    written: float | None  # when its metrics were written last, seconds since 1970
    curves: FollowedCurves | None  # while it trains


class WatchedRuns:
    """The runs at or below folders, which need not exist yet. Not to be used by several threads at once."""

    def __init__(self, folders: Sequence[Path], root: Path) -> None:
        """``root``: what names of runs are relative to."""
        self.folders, self.root = folders, root
        self.watched: dict[Path, WatchedRun] = {}
        self.reads = 0  # of a run's files
        self._lines: dict[Path, tuple[Stamp, list[Any]]] = {}

    @property
    def runs(self) -> list[Run]:
        """The runs, as a comparison orders them, with rewards in one unit."""
        return in_order([watched.run for watched in self.watched.values()])

    def refresh(self) -> bool:
        """Read the runs whose files changed; return whether a page of them would show anything else than before.

        Where none of the folders is there any more, the runs stay as they were read last.
        """
        if self.watched and not any(folder.is_dir() for folder in self.folders):
            return False
        before = {folder: watched.shown for folder, watched in self.watched.items()}
        found = list(dict.fromkeys(run for folder in self.folders for run in walk_runs(folder)))
        self.watched = {folder: self._look(folder) for folder in found}
        return before != {folder: watched.shown for folder, watched in self.watched.items()}

    def lines_of(self, path: Path) -> Iterable[Any]:
        """Read a file of samples as ``read_lines``, once as long as it stays the same."""
        stamp = _stamp_of(path)
        known = self._lines.get(path)
        if known is None or known[0] != stamp:
            known = self._lines[path] = stamp, list(read_lines(path))
        return known[1]

    def _look(self, folder: Path) -> WatchedRun:
        known, stamp = self.watched.get(folder), _stamp(folder)
        if known is not None and known.stamp == stamp:
            return known
        self.reads += 1
        curves = known.curves if known is not None and known.curves is not None else FollowedCurves()
        run = read_or_named(folder, self.root, is_drawn, curves)
        written = _written(folder)
        step = max((curve.last_step for curve in run.curves.values()), default=None)
        first = known.first if known is not None and known.first[1] is not None else (written, step)
        trains = run.status == RUNNING
        return WatchedRun(run, stamp, _shown(run, stamp), step, first, written, curves if trains else None)


def _stamp(folder: Path) -> Stamp:
    """Tell the states of a run apart, without reading it; its lock is held by nobody once its process is gone."""
    names = [folder / name for name in _READ]
    with contextlib.suppress(OSError):
        names += sorted(Path(entry) for entry in os.scandir(folder / FOLDER) if entry.is_file())
    return (is_held(folder), *map(_stamp_of, names))


def _stamp_of(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return (str(path),)
    return str(path), found.st_mtime_ns, found.st_size, found.st_ino


def _written(folder: Path) -> float | None:
    try:
        return (folder / NAME).stat().st_mtime
    except OSError:
        return None


def _shown(run: Run, stamp: Stamp) -> Stamp:
    """What of a run a page shows: of one that trains the curves, which grow seldomer than its rows."""
    if run.status != RUNNING:
        return stamp
    others = [found for found in stamp[1:] if not found[0].endswith(f"/{NAME}")]
    return run.status, others, _drawn(run)


def _drawn(run: Run) -> list[tuple[str, int, int, str]]:
    def ends() -> Iterator[tuple[str, int, int, str]]:
        for name, curve in run.curves.items():
            if is_drawn(name):
                yield name, len(curve), curve.last_step, repr(curve.last)

    return list(ends())
