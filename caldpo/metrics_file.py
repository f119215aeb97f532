"""``metrics.csv``: a row per optimiser step and per evaluation, on disk as soon as it is known. No heavy imports.

It is the source of truth of a run: reports read it, a resumed run continues it, and trackers are filled from it. Rows
are appended; the file is rewritten atomically where a row brings a new column.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from caldpo.errors import CaldpoError
from caldpo.utils.atomic_io import append_text, atomic_text

NAME = "metrics.csv"
STEP = "step"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows up to the first damaged one, as text.

    Damaged is a last row that a kill cut short, and any that has not a number or nothing under each column: what a
    power cut leaves at the end is truncated like what comes after a checkpoint, and a row lost before it is reported.
    """
    return list(iter_rows(path))


def iter_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows as :func:`read_rows`, one at a time: those of a long run are a hundred times the file's size."""
    return _scan(path, [])


def count_rows(path: Path) -> int:
    """Count the rows of :func:`read_rows`."""
    return sum(1 for _ in iter_rows(path))


def keep_rows(path: Path, count: int) -> FirstRows:
    """Truncate the file to its first ``count`` rows, and return them.

    Raises:
        CaldpoError: it has fewer.
    """
    damages: list[str] = []
    there = sum(1 for _ in _scan(path, damages))
    if there < count:
        raise CaldpoError(
            " ".join([f"it has {there} rows, {count} were written", *(f"({damage})" for damage in damages)]),
            key=str(path),
            remedy="bring the file back, or start a new run",
        )
    rows = FirstRows(path, count)
    if count == 0:
        path.unlink(missing_ok=True)
    else:
        columns = list(next(iter(rows)))
        with atomic_text(path) as file:
            _write_rows(file, columns, rows, header=True)
    return rows


@dataclass(frozen=True)
class FirstRows:
    """The first ``count`` rows of a file, read each time they are asked for."""

    path: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, str]]:
        return itertools.islice(iter_rows(self.path), self.count)


class RowWriter:
    """Append rows to the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None  # of the file, once something is written

    @property
    def columns(self) -> list[str]:
        """Columns of the file."""
        if self._columns is None:
            self._columns = list(next(iter_rows(self.path), ()))
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
            with atomic_text(self.path) as file:
                _write_rows(file, columns, self._undamaged(), header=True)
                _write_rows(file, columns, [row], header=False)
            self._columns = columns
        else:
            append_text(self.path, _as_text(self.columns, [row], header=False))

    def _undamaged(self) -> Iterator[dict[str, str]]:
        damages: list[str] = []
        yield from _scan(self.path, damages)
        for damage in damages:
            raise CaldpoError(damage, key=str(self.path), remedy="resume the run: it is cut to its last checkpoint")


def _scan(path: Path, damages: list[str]) -> Iterator[dict[str, str]]:
    """Yield the rows up to the first damaged one, whose damage is added; a last row without a line end is left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = csv.reader(_ended_lines(file))
        try:
            header = next(lines, None)
            if header is not None and (STEP not in header or len(set(header)) < len(header)):
                damages.append("line 1 names no steps, or a column twice")
                return
            for cells in lines:
                if header is None or not _is_row(header, cells):
                    damages.append(f"line {lines.line_num} has not a number or nothing under each column")
                    return
                yield dict(zip(header, cells, strict=True))
        except csv.Error as error:
            damages.append(f"line {lines.line_num} cannot be read: {error}")


def _ended_lines(file: Iterable[str]) -> Iterator[str]:
    """Yield the lines up to the last line feed."""
    pending: list[str] = []
    for line in file:
        pending.append(line)  # it may end with a carriage return alone
        if line.endswith("\n"):
            yield from pending
            pending.clear()


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
    _write_rows(text, columns, rows, header=header)
    return text.getvalue()


def _write_rows(file: TextIO, columns: list[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> None:
    writer = csv.DictWriter(file, fieldnames=columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
