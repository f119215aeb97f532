"""Reads a run folder into a ``Run``. A damaged file costs what it lacks, never the other runs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from caldpo.compare.discover import natural
from caldpo.compare.drawable import drawable
from caldpo.compare.evaluation import final_values
from caldpo.compare.run import DIED, FINISHED, INCOMPLETE, INTERRUPTED, RUNNING, Curve, Run, as_float
from caldpo.config.job import status_of
from caldpo.config.lock import is_held
from caldpo.config.redact import redact_text
from caldpo.config.summary import SUMMARY, read_summary
from caldpo.config.tree import flatten, read_yaml
from caldpo.errors import CaldpoError
from caldpo.evaluation.result import read_results

_NO_END = {
    RUNNING: "it is still training",
    DIED: "its process ended without a word: killed, out of memory, or the machine went down",
    INTERRUPTED: "it was stopped from outside",
    INCOMPLETE: "it left no summary",
}


def read_runs(folders: Iterable[Path], root: Path) -> list[Run]:
    """The runs of ``folders`` in the order in which their sweeps started them; names relative to ``root``."""
    runs = [read_run(folder, root) for folder in folders]
    return sorted(
        runs,
        key=lambda run: (
            natural(str(Path(run.name).parent)),
            run.job if run.job is not None else len(runs),
            natural(run.name),
        ),
    )


def read_run(folder: Path, root: Path) -> Run:
    """One run folder; what is missing or unreadable is named in ``notes`` or ``error``."""
    notes: list[str] = []
    raw, resolved = (_yaml(folder / name, notes) for name in (".hydra/config.yaml", "config.yaml"))
    hydra = _mapping(_yaml(folder / ".hydra/hydra.yaml", notes), "hydra")
    # What is read here may be printed in a report, and Hydra keeps overrides as they were typed.
    typed = _yaml(folder / ".hydra/overrides.yaml", notes)
    overrides = tuple(redact_text(str(o)) for o in typed) if isinstance(typed, list) else ()
    summary = _summary(folder, notes)
    status = _status(folder, summary)
    curves = read_curves(folder / "metrics.csv", notes)
    evaluation = drawable(read_results(folder, notes), notes)
    flat_resolved = flatten(resolved or raw or {})
    return Run(
        folder=folder,
        name=folder.relative_to(root).as_posix() if folder != root else folder.name,
        status=status,
        error=None if status == FINISHED else _error(status, summary, notes),
        loss=_loss(summary, flat_resolved, overrides),
        seed=_integer(summary.get("seed", flat_resolved.get("seed"))),
        config=flatten(raw or resolved or {}),
        resolved=flat_resolved,
        overrides=overrides,
        choices={k: v for k, v in _mapping(_mapping(hydra, "runtime"), "choices").items() if isinstance(v, str)},
        curves=curves,
        final=_final(curves, _mapping(summary, "metrics")) | final_values(evaluation),
        summary=summary,
        evaluation=evaluation,
        notes=tuple(notes),
        job=_integer(_mapping(hydra, "job").get("num")),
    )


def read_curves(path: Path, notes: list[str]) -> dict[str, dict[int, float]]:
    """Every metric of a ``metrics.csv`` over optimiser steps.

    An empty cell was not logged in that row; ``nan`` was, and stays. Lines that do not fit the header, as a
    killed run leaves one at the end, are left out and noted. A step logged twice keeps its last value.
    """
    if not path.is_file():
        notes.append(f"no {path.name}")
        return {}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            lines = list(csv.reader(file))
    except (OSError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    header = lines[0] if lines else []
    if "step" not in header:
        notes.append(f"{path.name} has no column named step")
        return {}
    curves: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            cells = {name: float(cell) for name, cell in zip(header, line, strict=True) if cell.strip()}
            step = int(cells.pop("step"))  # infinite and fractional ones are damage
        except (ValueError, KeyError, OverflowError):
            notes.append(f"{path.name}:{number} is incomplete and left out")
            continue
        for name, value in cells.items():
            curves.setdefault(name, {})[step] = value
    return curves


def _final(curves: Mapping[str, Curve], summarised: Mapping[str, Any]) -> dict[str, float]:
    """The summary's metrics; the last logged value of those that it lacks. JSON's null is not a number."""
    last = {name: curve[max(curve)] for name, curve in curves.items() if name != "epoch"}
    return last | {
        name: as_float(value)
        for name, value in summarised.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def _error(status: str, summary: Mapping[str, Any], notes: list[str]) -> str:
    if summary.get("error"):
        return redact_text(str(summary["error"]))
    unreadable = [note for note in notes if note.startswith(SUMMARY)]
    if unreadable:
        return unreadable[0]
    return _NO_END.get(status, "no error was recorded")


def _status(folder: Path, summary: Mapping[str, Any]) -> str:
    """As the summary says; what it says is not believed of a run that nobody runs any more."""
    if not summary:
        return RUNNING if is_held(folder) else INCOMPLETE
    return status_of(folder, str(summary.get("status", INCOMPLETE)))


def _loss(summary: Mapping[str, Any], config: Mapping[str, Any], overrides: Iterable[str]) -> str:
    given = [text.partition("=")[2] for text in overrides if text.startswith("loss=")]
    names = (summary.get("loss_name"), config.get("loss_name"), *given, config.get("loss._target_"))
    return next((str(name) for name in names if name), "unknown")


def _yaml(path: Path, notes: list[str]) -> Any:
    """The content of a yaml file; None where it is missing, or cannot be read, which is noted."""
    if not path.is_file():
        return None
    try:
        return read_yaml(path)
    except (OSError, ValueError):
        notes.append(f"{path.name} cannot be read")
        return None


def _summary(folder: Path, notes: list[str]) -> Mapping[str, Any]:
    try:
        return read_summary(folder)
    except CaldpoError as error:
        notes.append(f"{SUMMARY} {error.message}")
        return {}


def _mapping(tree: Any, key: str) -> Mapping[str, Any]:
    branch = tree.get(key) if isinstance(tree, Mapping) else None
    return branch if isinstance(branch, Mapping) else {}


def _integer(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None
