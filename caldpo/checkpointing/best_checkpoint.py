"""The checkpoint at which a watched held-out metric was best, found in a run's own files. No heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from caldpo.checkpointing.manifest import checkpoint_folders
from caldpo.errors import CaldpoError
from caldpo.metric_definitions import definition_of
from caldpo.metrics_file import NAME, STEP, iter_rows

Mode = Literal["min", "max"]


def better_mode(metric: str) -> Mode | None:
    """Return whether a metric is better when it is smaller or larger; None where its definition does not say."""
    definition = definition_of(metric)
    return None if definition is None else definition.mode


def chosen_mode(metric: str, mode: Literal["auto", "min", "max"]) -> Mode:
    """Resolve ``auto`` by the metric's definition.

    Raises:
        CaldpoError: the definition names no direction.
    """
    known = better_mode(metric) if mode == "auto" else mode
    if known is None:
        wrong = f"{metric} is not plainly better in one direction"
        raise CaldpoError(wrong, key="mode", value=mode, remedy="set it to min or max")
    return known


def is_better(value: float, than: float, mode: Mode) -> bool:
    """Tell whether a value is strictly better; of equal ones the first counts, and one that is not a number never."""
    return value < than if mode == "min" else value > than


@dataclass(frozen=True)
class BestCheckpoint:
    """The best of the checkpoints that a run has kept."""

    metric: str
    mode: Mode
    step: int  # optimiser steps that its weights have seen
    value: float
    folder: Path
    note: str | None = None  # where another step, of which there is no checkpoint, was better


def find_best(run_dir: Path, section: Mapping[str, Any] | None) -> BestCheckpoint:
    """Find the best checkpoint by the run's ``metrics.csv``.

    Args:
        run_dir: the run's folder.
        section: ``callbacks.checkpoint`` of its configuration.

    Raises:
        CaldpoError: the run watched no metric, or has no checkpoint of a step at which it was measured.
    """
    metric = (section or {}).get("monitor")
    if metric is None:
        raise CaldpoError(
            f"{run_dir} watched no metric",
            key="checkpoint",
            value="best",
            remedy="name a checkpoint by its step, or train with callbacks.checkpoint.monitor=val/loss",
        )
    mode = chosen_mode(str(metric), (section or {}).get("mode", "auto"))
    measured: dict[int, float] = {}
    for row in iter_rows(run_dir / NAME):
        if row.get(metric):
            measured[int(row[STEP])] = float(row[metric])
    saved = checkpoint_folders(run_dir)
    best = _best_of({step: value for step, value in measured.items() if step in saved}, mode)
    if best is None:
        raise CaldpoError(
            f"{run_dir} has no checkpoint of a step at which {metric} was measured",
            key="checkpoint",
            value="best",
            remedy="choose checkpoint=last, or let the run go on: resume=FOLDER",
        )
    of_all = _best_of(measured, mode)
    note = None
    if of_all is not None and is_better(measured[of_all], measured[best], mode):
        start = " (where training started)" if of_all == 0 else ""
        note = (
            f"{metric} was best at step {of_all}{start} with {measured[of_all]:.6g}, of which there is no checkpoint;"
            f" the best that there is is of step {best}"
        )
    return BestCheckpoint(str(metric), mode, best, measured[best], saved[best], note)


def _best_of(values: Mapping[int, float], mode: Mode) -> int | None:
    best: int | None = None
    for step in sorted(values):
        if values[step] == values[step] and (best is None or is_better(values[step], values[best], mode)):
            best = step
    return best
