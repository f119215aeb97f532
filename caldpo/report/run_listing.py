"""List runs as a table: of each run only its summary, the end of its metrics and what Hydra chose are read."""

from __future__ import annotations

import contextlib
import csv
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldpo.config.bounds import PositiveInt
from caldpo.config.find_runs import find_runs, natural
from caldpo.config.run_lifecycle import DIED, FAILED, FINISHED, INCOMPLETE, INTERRUPTED, RUNNING, UNREADABLE, status_of
from caldpo.config.run_lock import is_held
from caldpo.config.signatures import validated
from caldpo.config.summary_file import SUMMARY, read_summary
from caldpo.errors import CaldpoError
from caldpo.metric_definitions import definition_of
from caldpo.metrics_file import NAME, STEP
from caldpo.report.escaping import one_line, shorten
from caldpo.report.repeated_yaml import read_job
from caldpo.utils.text_format import counted, number

_END = 2**16  # bytes at the end of metrics.csv that are read: some hundred rows
_NAMED_BY = {"model": ("model.path",), "data": ("data.path", "data.train")}  # what an option of one's own is about
_STYLES = {FINISHED: "green", RUNNING: "cyan", INTERRUPTED: "yellow", FAILED: "bold red", DIED: "bold red"}
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_WIDE = 1000  # columns where the output is no terminal: nothing is folded


@dataclass(frozen=True)
class ListedRun:
    """What the table shows of a run; None is not known."""

    folder: Path
    state: str
    loss: str | None = None
    model: str | None = None
    data: str | None = None
    step: int | None = None  # optimiser steps done
    planned: int | None = None
    value: float | None = None  # of the metric
    written: float = 0.0  # when it last wrote something, seconds since 1970


@validated
def list_runs(
    folder: str = "outputs", metric: str = "val/rewards/accuracies", newest: PositiveInt | None = None
) -> None:
    """Print the runs at or below ``folder``, the newest first.

    Args:
        folder: relative to the current folder.
        metric: logged name of the metric shown.
        newest: how many runs are shown; None shows all.

    Raises:
        CaldpoError: there is no such folder, or no run in it.
    """
    root = Path(folder).expanduser()
    runs = [read_listed(run, metric) for run in find_runs(root, key="folder")]
    runs.sort(key=lambda run: (-run.written, natural(str(run.folder))))
    shown = runs if newest is None else runs[:newest]
    _print(shown, root, metric)
    counts = Counter(one_line(run.state) for run in runs)
    states = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    left_out = f"; the newest {len(shown):,} are shown" if len(shown) < len(runs) else ""
    print(f"{counted(len(runs), 'run')} in {root}: {states}{left_out}")
    if all(run.value is None for run in runs):
        print(f"note: no run has logged {one_line(metric)}")


def read_listed(folder: Path, metric: str) -> ListedRun:
    """Read what is shown of the run in this folder; what is missing or damaged is not known."""
    try:
        summary = read_summary(folder)
    except CaldpoError:
        return ListedRun(folder, UNREADABLE, written=_written(folder))
    state = status_of(folder, str(summary["status"])) if "status" in summary else INCOMPLETE
    if state == INCOMPLETE and is_held(folder):
        state = RUNNING
    choices: Mapping[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        choices = read_job(folder / ".hydra" / "hydra.yaml")[1]
    overrides = dict(str(text).partition("=")[::2] for text in summary.get("overrides", ()))
    step, value = summary.get("steps"), summary.get("metrics", {}).get(metric)
    if state != FINISHED or step is None:
        last = _last_values(folder / NAME, (STEP, metric))
        value = last.get(metric, value)
        if math.isfinite(last.get(STEP, math.nan)):
            step = int(last[STEP])
    return ListedRun(
        folder,
        state,
        loss=summary.get("loss_name") or choices.get("loss"),
        model=_named("model", choices, overrides),
        data=_named("data", choices, overrides),
        step=step,
        planned=summary.get("planned_steps"),
        value=_float(value),
        written=_written(folder),
    )


def _named(group: str, choices: Mapping[str, Any], overrides: Mapping[str, str]) -> str | None:
    """Name the option of a group, and the last part of the path that it was given."""
    path = next((overrides[key] for key in _NAMED_BY[group] if key in overrides), None)
    words = [choices.get(group), None if path is None else path.strip("'\"/").rpartition("/")[2]]
    return " ".join(str(word) for word in words if word) or None


def _last_values(file: Path, names: Sequence[str]) -> dict[str, float]:
    """Read the last value of each column that is found in the end of a ``metrics.csv``."""
    try:
        with file.open("rb") as opened:
            header = next(csv.reader([opened.readline().decode("utf-8", "replace")]), [])
            begin = opened.tell()
            opened.seek(max(begin, file.stat().st_size - _END))
            lines = opened.read().decode("utf-8", "replace").splitlines(keepends=True)
            whole = lines if max(begin, file.stat().st_size - _END) == begin else lines[1:]
    except OSError:
        return {}
    values: dict[str, float] = {}
    for cells in csv.reader([line for line in reversed(whole) if line.endswith("\n")]):
        for name, cell in zip(header, cells, strict=False):
            if cell and name in names and name not in values:
                with contextlib.suppress(ValueError):
                    values[name] = float(cell)
        if len(values) == len(names):
            break
    return values


def _float(value: object) -> float | None:
    """Take a number of JSON as a float; None is none, or one beyond all floats."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def _written(folder: Path) -> float:
    """When the run last wrote a row or its summary; else when its folder changed."""
    times = [path.stat().st_mtime for name in (NAME, SUMMARY) if (path := folder / name).exists()]
    return max(times, default=folder.stat().st_mtime)


def _print(runs: Sequence[ListedRun], root: Path, metric: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    definition = definition_of(metric)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    for name in ("loss", "model", "data"):
        table.add_column(name, overflow="fold")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column(definition.title if definition and definition.name[-1] != "*" else metric, justify="right")
    table.add_column("age", justify="right", no_wrap=True)
    now = time.time()
    for run in runs:
        place = run.folder.relative_to(root) if run.folder != root else Path(run.folder.name)
        table.add_row(
            *(Text(shorten(text, 120) if text else "-") for text in (str(place), run.loss, run.model, run.data)),
            _progress(run),
            Text(one_line(run.state), _STYLES.get(run.state, "yellow")),
            "-" if run.value is None else number(run.value),
            _age(now - run.written),
        )
    console.print(table, highlight=False)


def _progress(run: ListedRun) -> str:
    done = "-" if run.step is None else f"{run.step:,}"
    return done if run.planned is None or run.planned == run.step else f"{done}/{run.planned:,}"


def _age(seconds: float) -> str:
    """Write an age by its largest unit: ``3 min``."""
    size, unit = next(((size, unit) for size, unit in _AGES if seconds >= size), (1, "s"))
    return f"{max(0, int(seconds // size))} {unit}"
