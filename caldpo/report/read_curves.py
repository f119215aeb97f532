"""``metrics.csv`` as curves. A bad cell costs that cell, a bad line that line; what is left out is named."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

_LAST_STEP = 2**53  # beyond it floats, in which figures are drawn, are no whole numbers any more
_NAMED = 3  # lines and columns of a kind that are named, the others counted


def read_curves(path: Path, notes: list[str]) -> dict[str, dict[int, float]]:
    """Every metric of a ``metrics.csv`` over optimiser steps.

    An empty cell was not logged in that row; ``nan`` was, and stays. Lines that do not fit the header, as a
    killed run leaves one at the end, and cells that hold no number are left out and noted. A step logged twice
    keeps its last value.
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
    left_out: list[str] = []
    wrong: dict[str, list[str]] = {}
    for number, line in enumerate(lines[1:], start=2):
        row = dict(zip(header, line, strict=False))
        step = _step(row.pop("step", "")) if len(line) == len(header) else None
        if step is None:
            left_out.append(f"{path.name}:{number}")
            continue
        for name, cell in row.items():
            try:
                if cell.strip():
                    curves.setdefault(name, {})[step] = float(cell)
            except ValueError:
                wrong.setdefault(name, []).append(f"{cell[:40]!r} in line {number}")
    if left_out:
        verb = "is" if len(left_out) == 1 else "are"
        notes.append(f"{_some(left_out)} {verb} incomplete and left out")
    for name, places in list(wrong.items())[:_NAMED]:
        notes.append(f"{path.name}: {name} is no number: {_some(places)}; left out")
    if len(wrong) > _NAMED:
        notes.append(f"{path.name}: so are cells of {len(wrong) - _NAMED} more columns")
    return curves


def _step(cell: str) -> int | None:
    """The optimiser step that a cell names, ``5`` or ``5.0``; None where it names none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return int(value) if 0 <= value <= _LAST_STEP and value.is_integer() else None


def _some(places: Sequence[str]) -> str:
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return ", ".join(places[:_NAMED]) + more
