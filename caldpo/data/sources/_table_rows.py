"""Rows of parquet and csv files. A table has a cell in every column, so an empty one means: not given."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from caldpo.data.cell_parsing import TURNS, Cell, decoded
from caldpo.data.columns import in_force
from caldpo.data.formats import require_columns
from caldpo.data.raw_row import RawRow, RowError, shown
from caldpo.data.sources import _file_open as _open
from caldpo.data.sources._file_open import open_bytes, too_long
from caldpo.errors import CaldpoError

_BATCH = 128  # rows in memory at a time
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # what the error handler "surrogateescape" makes of such bytes


def given(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` without its nulls, those inside its cells included: a table cannot leave a column out of one row.

    The null of a column that may hold the prompt stays: its lack is a fault of the row. A conversation that a table
    holds as text, in JSON or Python notation, is decoded, since many a table has been through csv.
    """
    stays = in_force().may_ask
    found = {name: _given(value) for name, value in row.items() if value is not None or name in stays}
    for name in TURNS:
        if isinstance(found.get(name), str):
            with contextlib.suppress(RowError):  # left as the text it is, which the format refuses
                found[name] = decoded(name, found[name])
    return found


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _given(item) for name, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def read_parquet(path: Path) -> Iterator[RawRow]:
    """The rows of a parquet file, counted from 0.

    Raises:
        CaldpoError: (while reading, too) no such file, or columns that no format has.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise CaldpoError("it has two columns of one name", key=str(path), remedy="rename one of them")
            require_columns(names, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from _rows_of(batch, path, number)
                number += len(batch)
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise CaldpoError(
            f"no readable parquet file ({_first_line(error)})",
            key=str(path),
            remedy="copy or download it again",
        ) from error


def read_arrow(path: Path) -> Iterator[RawRow]:
    """The rows of an Arrow file in a folder that ``datasets`` saved, counted from 0.

    Raises:
        CaldpoError: (while reading, too) no such file, or columns that no format has.
    """
    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            require_columns(stream.schema.names, str(path))
            number = 0
            for batch in stream:
                batch.validate(full=True)  # offsets of a damaged file may point outside of it
                for start in range(0, len(batch), _BATCH):
                    yield from _rows_of(batch.slice(start, _BATCH), path, number + start)
                number += len(batch)
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise CaldpoError(
            f"no readable Arrow file ({_first_line(error)})", key=str(path), remedy="save the data set again"
        ) from error


def _rows_of(batch: pyarrow.RecordBatch, path: Path, first: int) -> Iterator[RawRow]:
    """The rows of a batch, one after another where one of them may be too long or cannot be read."""
    if batch.nbytes <= _open.MAX_ROW:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):  # text that is not UTF-8, a date beyond Python's; of which row?
            pass
        else:
            for number, row in enumerate(rows, first):
                yield RawRow(f"{path}[{number}]", given(row))
            return
    for place in range(len(batch)):
        origin, one = f"{path}[{first + place}]", batch.slice(place, 1)
        if one.nbytes > _open.MAX_ROW:
            yield RawRow(origin, None, too_long("row"))
            continue
        try:
            (row,) = one.to_pylist()
        except (ValueError, OverflowError) as error:
            what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "a value cannot be read"
            yield RawRow(origin, None, f"{what} ({_first_line(error)})")
        else:
            yield RawRow(origin, given(row))


def read_csv(path: Path) -> Iterator[RawRow]:
    """The rows of a comma-separated file with a header; a row's origin is its line, or the range of its lines.

    All cells are text, of the type :class:`~caldpo.data.cell_parsing.Cell`, but for two cases in which csv has no
    other way to say it: ``score_chosen`` and ``score_rejected`` are numbers, and a cell of a column that may hold a
    conversation is that conversation where it is the JSON or Python notation of one.

    Every line is in one row or blank. Of a row that is no CSV, or has another number of cells than the header, each
    line is a bad row of its own: where a quote is never closed, the rows after it are read as text of its cell.

    Raises:
        CaldpoError: (while reading, too) a damaged file, or a header without the columns of any format.
    """
    # characters; the csv module's own limit of 128 KiB is shorter than long responses
    csv.field_size_limit(max(csv.field_size_limit(), _open.MAX_ROW + 1))
    with open_bytes(path) as handle:
        # Bytes that are no UTF-8 become lone surrogates, so that they cost their row and not the file.
        lines = _Lines(io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline=""))
        reader = csv.reader(lines, strict=True)
        header = _header(reader, path)
        while True:
            lines.begin_row()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except _RowTooLongError as error:
                if error.lines > 1:
                    wrong = f"{too_long('a row')}, most likely for a quote that is never closed"
                    raise CaldpoError(wrong, key=f"{path}:{lines.first}", remedy="mend the file there") from error
                yield RawRow(f"{path}:{lines.first}", None, too_long("row"))
                continue
            except csv.Error as error:
                yield from _lost(path, lines, "not CSV", str(error))
                continue
            origin = f"{path}:{lines.first}" + (f"-{lines.read}" if lines.read > lines.first else "")
            if found := next((match for cell in cells if (match := _NO_UTF8.search(cell))), None):
                yield RawRow(origin, None, f"not UTF-8 (byte 0x{ord(found[0]) - 0xDC00:02X})")
            elif len(cells) == len(header):
                yield RawRow(origin, _typed(dict(zip(header, cells, strict=True))), note=lines.note(len(header)))
            elif cells:  # an empty list is a blank line
                counted = f"{len(cells)} of {len(header)}"
                yield from _lost(path, lines, "not as many cells as the header has", counted)


def _lost(path: Path, lines: _Lines, why: str, detail: str) -> Iterator[RawRow]:
    """A bad row for each line of the one that was read last."""
    if lines.read > lines.first:
        why += ", most likely for a quote that is never closed"
        detail += f"; lines {lines.first:,} to {lines.read:,}"
    yield RawRow(f"{path}:{lines.first}", None, f"{why} ({detail})")
    for number in range(lines.first + 1, lines.read + 1):
        yield RawRow(f"{path}:{number}", None, f"read as part of a faulty row (which begins in line {lines.first:,})")


class _RowTooLongError(Exception):
    """A row that goes on beyond the limit, in which it has these lines."""

    def __init__(self, lines: int) -> None:
        super().__init__(f"{lines} lines")
        self.lines = lines


class _Lines:
    """The lines of a text, of which a row may have so many characters and no more."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._left, self.read, self.first = text, _open.MAX_ROW, 0, 1
        self._cells: set[int] = set()

    def begin_row(self) -> None:
        """What follows is another row."""
        self._left, self.first = _open.MAX_ROW, self.read + 1
        self._cells.clear()

    def note(self, cells: int) -> str | None:
        """What to say of a good row of so many cells that has several lines; None of one that has not."""
        if self.read <= self.first:
            return None
        if self._cells == {cells}:
            return "a quoted cell holds lines that would be rows by themselves: is its quote closed where it should be?"
        return "a quoted cell over several lines"

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        if not line:
            raise StopIteration
        self.read += 1
        self._left -= len(line)
        if self._left < 0:
            while line and not line.endswith(("\n", "\r")):
                line = self._text.readline(2**20)
            raise _RowTooLongError(self.read - self.first + 1)
        self._cells.add(line.count(",") + 1)
        return line


def _header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        header = next((cells for cells in reader if any(map(str.strip, cells))), [])
    except (csv.Error, _RowTooLongError) as error:
        why = too_long("it is") if isinstance(error, _RowTooLongError) else error
        raise CaldpoError(f"its first line is no CSV header ({why})", key=str(path)) from error
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise CaldpoError(f"its header names a column twice ({shown(repeated[0])})", key=str(path))
    if header:
        require_columns(header, str(path))
    return header


def _typed(cells: dict[str, str]) -> dict[str, Any]:
    row = given({name: Cell(cell) if cell != "" else None for name, cell in cells.items()})
    for name in ("score_chosen", "score_rejected"):
        try:
            row[name] = float(row[name])
        except (KeyError, ValueError):
            continue  # absent, or left as the text it is, which the format refuses
    return row


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
