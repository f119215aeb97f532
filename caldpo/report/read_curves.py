"""Read ``metrics.csv`` as curves, and compare them with what the other files of the run say.

A bad cell costs that cell, a bad line that line; both are named.
"""

from __future__ import annotations

import csv
import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from caldpo.report.escaping import first_of
from caldpo.report.logged_curve import LAST_STEP, LoggedCurve
from caldpo.report.run_files import as_float, is_number

_NAMED = 3  # lines, columns and metrics of a kind that are named, the others counted
_SAME = 1e-6  # relative; summary.json and metrics.csv are written from the same float64


IsWhole = Callable[[str], bool]  # whether a metric is wanted at every step, by its logged name


def every_curve(name: str) -> bool:
    return True


def read_curves(path: Path, notes: list[str], is_whole: IsWhole = every_curve) -> dict[str, LoggedCurve]:
    """Read every metric of a ``metrics.csv`` over optimiser steps, row by row.

    An empty cell was not logged in that row; ``nan`` was, and stays. Lines that do not fit the header, as a killed run
    leaves one at the end, and cells that are not numbers are noted. Of a step logged twice the last value counts.

    Args:
        path: the file.
        notes: takes what is wrong with it.
        is_whole: which metrics are wanted at every step; of others the last one is returned.
    """
    if not path.is_file():
        notes.append(f"no {path.name}")
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = MetricRows(is_whole)
            rows.add(csv.reader(file))
    except (OSError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    return rows.curves(path.name, notes)


class MetricRows:
    """The rows of a ``metrics.csv`` by column, to which those that follow can be added."""

    def __init__(self, is_whole: IsWhole = every_curve) -> None:
        self.header: list[str] | None = None
        self._is_whole = is_whole
        self._columns: dict[str, _Column] = {}
        self._incomplete: list[int] = []  # numbers of lines
        self._numbers = itertools.count(2)

    def add(self, lines: Iterator[list[str]]) -> None:
        """Add the next lines of the file; the first of all is the header."""
        if self.header is None:
            self.header = next(lines, [])
            self._columns = {name: _Column(place, self._is_whole(name)) for place, name in enumerate(self.header)}
        if "step" in self._columns:
            self._incomplete += _read_rows(zip(lines, self._numbers, strict=False), self._columns, len(self.header))

    def curves(self, file: str, notes: list[str]) -> dict[str, LoggedCurve]:
        """Return every metric over steps; ``notes`` takes what is wrong with the file, which is called ``file``."""
        return _curves(file, self.header or [], dict(self._columns), self._incomplete, notes)


def _curves(
    file: str, header: list[str], columns: dict[str, _Column], incomplete: list[int], notes: list[str]
) -> dict[str, LoggedCurve]:
    if "step" not in columns:
        notes.append(f"{file} has no column named step")
        return {}
    for name in dict.fromkeys(name for name in header if header.count(name) > 1):
        notes.append(f"{file} has several columns named {name!r}; the last one counts")
    del columns["step"]
    if incomplete:
        left_out = first_of([f"{file}:{number}" for number in incomplete], _NAMED)
        notes.append(f"{left_out} {'is' if len(incomplete) == 1 else 'are'} incomplete and left out")
    wrong = sorted((name for name in columns if columns[name].wrong), key=lambda name: columns[name].wrong[0][0])
    for name in wrong[:_NAMED]:
        places = [f"{cell!r} in line {number}" for number, cell in columns[name].wrong]
        notes.append(f"{file}: {name} is not a number: {first_of(places, _NAMED)}; left out")
    if len(wrong) > _NAMED:
        notes.append(f"{file}: so are cells of {len(wrong) - _NAMED} more columns")
    return {name: LoggedCurve.of_rows(column.steps, column.numbers) for name, column in columns.items() if column.steps}


class _Column:
    """What was read of a column."""

    __slots__ = ("is_whole", "numbers", "place", "steps", "wrong")

    def __init__(self, place: int, is_whole: bool) -> None:
        self.place = place
        self.is_whole = is_whole  # else only the value at the last step stays
        self.steps = array("q")
        self.numbers = array("d")
        self.wrong: list[tuple[int, str]] = []  # line and beginning of cells that are not numbers


def _read_rows(lines: Iterable[tuple[list[str], int]], columns: Mapping[str, _Column], width: int) -> list[int]:
    """Add rows, each with its line's number, to the columns; return the numbers of those without a step or of another
    width.
    """
    steps_at, incomplete = columns["step"].place, []
    others = [(column.place, column) for name, column in columns.items() if name != "step"]
    for cells, number in lines:
        step = _step(cells[steps_at]) if len(cells) == width else None
        if step is None:
            incomplete.append(number)
            continue
        for place, column in others:
            if cell := cells[place]:
                try:
                    value = float(cell)
                except ValueError:
                    if cell.strip():
                        column.wrong.append((number, cell[:40]))
                    continue
                if column.is_whole or not column.steps:
                    column.steps.append(step)
                    column.numbers.append(value)
                elif step >= column.steps[0]:
                    column.steps[0], column.numbers[0] = step, value
    return incomplete


def contradictions(
    curves: Mapping[str, LoggedCurve], summary: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[str]:
    """Yield where ``summary.json`` of a finished run, whose values are used, differs from its other files."""
    for key in ("loss_name", "seed"):
        summarised, composed = summary.get(key), config.get(key)
        if summarised is not None and composed is not None and str(summarised) != str(composed):
            yield f"summary.json says {key} {summarised}, config.yaml {composed}; the summary's counts"
    last = max((curve.last_step for curve in curves.values()), default=None)
    steps = summary.get("steps")
    if is_number(steps) and last is not None and steps != last:
        yield f"summary.json says that it took {steps} steps, metrics.csv ends at step {last}"
    metrics = summary.get("metrics")
    differing = []
    for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
        curve = curves.get(name)
        if curve and (value is None or is_number(value)) and not _same(as_float(value), curve.last):
            text = "null" if value is None else f"{as_float(value):.6g}"
            differing.append(f"{name} {text} against {curve.last:.6g} at step {curve.last_step}")
    if differing:
        shown = "tables show the summary's, figures the rows"
        yield f"summary.json and the last rows of metrics.csv differ: {first_of(differing, _NAMED)}; {shown}"


def _step(cell: str) -> int | None:
    """Read the optimiser step of a cell, ``5`` or ``5.0``; None where it names none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return int(value) if 0 <= value <= LAST_STEP and value.is_integer() else None


def _same(summarised: float, logged: float) -> bool:
    if not math.isfinite(summarised):  # JSON has null for all that is not finite
        return not math.isfinite(logged)
    return math.isclose(summarised, logged, rel_tol=_SAME, abs_tol=1e-12)
