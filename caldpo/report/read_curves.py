"""Read ``metrics.csv`` as curves, and compare them with what the other files of the run say.

A bad cell costs that cell, a bad line that line; both are named.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caldpo.report.escaping import first_of
from caldpo.report.run_files import Curve, as_float, is_number

_LAST_STEP = 2**53  # beyond it floats, in which figures are drawn, are no whole numbers any more
_NAMED = 3  # lines, columns and metrics of a kind that are named, the others counted
_SAME = 1e-6  # relative; summary.json and metrics.csv are written from the same float64


def read_curves(path: Path, notes: list[str]) -> dict[str, dict[int, float]]:
    """Read every metric of a ``metrics.csv`` over optimiser steps.

    An empty cell was not logged in that row; ``nan`` was, and stays. Lines that do not fit the header, as a killed run
    leaves one at the end, and cells that are not numbers are noted. Of a step logged twice the last value counts.
    """
    if not path.is_file():
        notes.append(f"no {path.name}")
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            lines = list(csv.reader(file))
    except (OSError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}
    header = lines[0] if lines else []
    if "step" not in header:
        notes.append(f"{path.name} has no column named step")
        return {}
    for name in dict.fromkeys(name for name in header if header.count(name) > 1):
        notes.append(f"{path.name} has several columns named {name!r}; the last one counts")
    curves: dict[str, dict[int, float]] = {}
    incomplete: list[str] = []
    bad_cells: dict[str, list[str]] = {}
    for number, line in enumerate(lines[1:], start=2):
        row = dict(zip(header, line, strict=False))
        step = _step(row.pop("step", "")) if len(line) == len(header) else None
        if step is None:
            incomplete.append(f"{path.name}:{number}")
            continue
        for name, cell in row.items():
            try:
                if cell.strip():
                    curves.setdefault(name, {})[step] = float(cell)
            except ValueError:
                bad_cells.setdefault(name, []).append(f"{cell[:40]!r} in line {number}")
    if incomplete:
        notes.append(
            f"{first_of(incomplete, _NAMED)} {'is' if len(incomplete) == 1 else 'are'} incomplete and left out"
        )
    for name, places in list(bad_cells.items())[:_NAMED]:
        notes.append(f"{path.name}: {name} is not a number: {first_of(places, _NAMED)}; left out")
    if len(bad_cells) > _NAMED:
        notes.append(f"{path.name}: so are cells of {len(bad_cells) - _NAMED} more columns")
    return curves


def contradictions(curves: Mapping[str, Curve], summary: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield where ``summary.json`` of a finished run, whose values are used, differs from its other files."""
    for key in ("loss_name", "seed"):
        summarised, composed = summary.get(key), config.get(key)
        if summarised is not None and composed is not None and str(summarised) != str(composed):
            yield f"summary.json says {key} {summarised}, config.yaml {composed}; the summary's counts"
    last = max((step for curve in curves.values() for step in curve), default=None)
    steps = summary.get("steps")
    if is_number(steps) and last is not None and steps != last:
        yield f"summary.json says that it took {steps} steps, metrics.csv ends at step {last}"
    metrics = summary.get("metrics")
    differing = []
    for name, value in metrics.items() if isinstance(metrics, Mapping) else ():
        curve = curves.get(name)
        if curve and (value is None or is_number(value)):
            logged = curve[max(curve)]
            if not _same(as_float(value), logged):
                text = "null" if value is None else f"{as_float(value):.6g}"
                differing.append(f"{name} {text} against {logged:.6g} at step {max(curve)}")
    if differing:
        shown = "tables show the summary's, figures the rows"
        yield f"summary.json and the last rows of metrics.csv differ: {first_of(differing, _NAMED)}; {shown}"


def _step(cell: str) -> int | None:
    """Read the optimiser step of a cell, ``5`` or ``5.0``; None where it names none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return int(value) if 0 <= value <= _LAST_STEP and value.is_integer() else None


def _same(summarised: float, logged: float) -> bool:
    if not math.isfinite(summarised):  # JSON has null for all that is not finite
        return not math.isfinite(logged)
    return math.isclose(summarised, logged, rel_tol=_SAME, abs_tol=1e-12)
