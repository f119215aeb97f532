"""``metrics.csv``: a row per optimiser step and per evaluation, on disk as soon as it is known. No heavy imports.

It is the truth about a run: reports are made of it, a resumed run goes on with it, and trackers are told again from it.
Rows are appended; the file is written anew, whole or not at all, where a row brings a column that was not there yet.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from caldpo.files import write_text

NAME = "metrics.csv"
STEP = "step"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of the file, as they are written; a last one that a kill cut short is left out."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(text, newline="")))


def keep_rows(path: Path, count: int) -> list[dict[str, str]]:
    """Cut the file down to its first ``count`` rows; these.

    Raises:
        ValueError: it has fewer.
    """
    rows = read_rows(path)
    if len(rows) < count:
        raise ValueError(f"{path} has {len(rows)} rows, {count} were written")
    if count == 0:
        path.unlink(missing_ok=True)
    else:
        write_text(path, _as_text(list(rows[0]), rows[:count], header=True))
    return rows[:count]


class RowWriter:
    """Appends to the file; what is in it stays.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None  # of the file, once something is written

    @property
    def columns(self) -> list[str]:
        """Of the file."""
        if self._columns is None:
            there = read_rows(self.path)
            self._columns = list(there[0]) if there else []
        return self._columns

    def write(self, metrics: Mapping[str, Any], step: int) -> None:
        """One row; ``step``: optimiser steps that the measured weights have seen."""
        row = {**metrics, STEP: step}
        new = set(row) - set(self.columns)
        if new:
            columns = sorted({*self.columns, *new})
            rows: list[Mapping[str, Any]] = [*read_rows(self.path), row]
            write_text(self.path, _as_text(columns, rows, header=True))
            self._columns = columns
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(_as_text(self.columns, [row], header=False))


def _as_text(columns: list[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
