"""``metrics.csv``: a row per optimiser step and per evaluation, on disk as soon as it is known. No heavy imports.

It is the source of truth of a run: reports read it, a resumed run continues it, and trackers are filled from it. Rows
are appended; the file is rewritten atomically where a row brings a new column.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from caldpo.errors import CaldpoError
from caldpo.utils.atomic_io import append_text, write_text

NAME = "metrics.csv"
STEP = "step"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows up to the first damaged one, as text.

    Damaged is a last row that a kill cut short, and any that has not a number or nothing under each column: what a
    power cut leaves at the end is truncated like what comes after a checkpoint, and a row lost before it is reported.
    """
    return _read(path)[0]


def keep_rows(path: Path, count: int) -> list[dict[str, str]]:
    """Truncate the file to its first ``count`` rows, and return them.

    Raises:
        CaldpoError: it has fewer.
    """
    rows, damage = _read(path)
    if len(rows) < count:
        raise CaldpoError(
            f"it has {len(rows)} rows, {count} were written" + (f" ({damage})" if damage else ""),
            key=str(path),
            remedy="bring the file back, or start a new run",
        )
    if count == 0:
        path.unlink(missing_ok=True)
    else:
        write_text(path, _as_text(list(rows[0]), rows[:count], header=True))
    return rows[:count]


class RowWriter:
    """Append rows to the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None  # of the file, once something is written

    @property
    def columns(self) -> list[str]:
        """Columns of the file."""
        if self._columns is None:
            rows = read_rows(self.path)
            self._columns = list(rows[0]) if rows else []
        return self._columns

    def write(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append one row; ``step``: optimiser steps that the measured weights have seen.

        Raises:
            OSError: it cannot be written; the file stays as it was.
            CaldpoError: the row brings a column, and an earlier row is damaged, which rewriting the file would lose.
        """
        row = {**metrics, STEP: step}
        new = set(row) - set(self.columns)
        if new:
            columns = [STEP, *sorted({*self.columns, *new} - {STEP})]
            earlier, damage = _read(self.path)
            if damage:
                raise CaldpoError(damage, key=str(self.path), remedy="resume the run: it is cut to its last checkpoint")
            rows: list[Mapping[str, Any]] = [*earlier, row]
            write_text(self.path, _as_text(columns, rows, header=True))
            self._columns = columns
        else:
            append_text(self.path, _as_text(self.columns, [row], header=False))


def _read(path: Path) -> tuple[list[dict[str, str]], str]:
    """Read the rows up to the first damaged one, and describe its damage; a last row without a line end is left out."""
    if not path.is_file():
        return [], ""
    text = path.read_bytes().decode("utf-8", errors="replace")
    rows: list[dict[str, str]] = []
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    try:
        header = next(lines, None)
        if header is not None and (STEP not in header or len(set(header)) < len(header)):
            return [], "line 1 names no steps, or a column twice"
        for cells in lines:
            if header is None or not _is_row(header, cells):
                return rows, f"line {lines.line_num} has not a number or nothing under each column"
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        return rows, f"line {lines.line_num} cannot be read: {error}"
    return rows, ""


def _is_row(header: list[str], cells: list[str]) -> bool:
    """Whether each column has a number or nothing, and that of the steps a whole one."""
    try:
        row = dict(zip(header, cells, strict=True))
        for cell in filter(None, cells):
            float(cell)
        return 0 <= int(row[STEP]) < 2**63
    except ValueError:
        return False


def _as_text(columns: list[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
