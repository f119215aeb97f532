"""Read rows of parquet, Arrow and csv files. A table has a cell in every column, so an empty one means: not given."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from caldpo.data.raw_row import Cell, RawRow, shown
from caldpo.data.sources import file_opening
from caldpo.data.sources.file_opening import open_bytes, too_long
from caldpo.errors import CaldpoError

_BATCH = 128  # rows in memory at a time
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # the error handler "surrogateescape" decodes such bytes to these


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Read the rows of a parquet file, counted from 0.

    Raises:
        CaldpoError: (while reading, too) no such file, a damaged one, or two columns of one name.
    """
    return _rows_of_batches(_parquet_batches(path), path, "parquet", "copy or download it again")


def read_arrow(path: Path) -> Iterator[RawRow]:
    """Read the rows of an Arrow file in a folder that ``datasets`` saved, counted from 0.

    Raises:
        CaldpoError: (while reading, too) no such file, or a damaged one.
    """
    return _rows_of_batches(_arrow_batches(path), path, "Arrow", "save the data set again")


def _parquet_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise CaldpoError("it has two columns of one name", key=str(path), remedy="rename one of them")
        yield from file.iter_batches(batch_size=_BATCH)


def _arrow_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
        for batch in stream:
            batch.validate(full=True)  # offsets of a damaged file may point outside of it
            yield from (batch.slice(start, _BATCH) for start in range(0, len(batch), _BATCH))


def _rows_of_batches(batches: Iterator[pyarrow.RecordBatch], path: Path, kind: str, remedy: str) -> Iterator[RawRow]:
    number = 0
    try:
        for batch in batches:
            yield from _rows_of(batch, path, number)
            number += len(batch)
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
        what = f"no readable {kind} file ({_first_line(error)})"
        raise CaldpoError(what, key=str(path), remedy=remedy) from error


def _rows_of(batch: pyarrow.RecordBatch, path: Path, first: int) -> Iterator[RawRow]:
    """Yield the rows of a batch, one by one where one of them may be too long or cannot be read."""
    wrong = too_long("row")
    if batch.nbytes <= file_opening.MAX_ROW:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date beyond Python's; of which row?
            what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "a value cannot be read"
            wrong = f"{what} ({_first_line(error)})"
        else:
            yield from (RawRow(f"{path}[{number}]", row, table=str(path)) for number, row in enumerate(rows, first))
            return
    if len(batch) == 1:
        yield RawRow(f"{path}[{first}]", None, wrong)
        return
    for place in range(len(batch)):
        yield from _rows_of(batch.slice(place, 1), path, first + place)


def read_csv(path: Path) -> Iterator[RawRow]:
    """Read the rows of a comma-separated file with a header; a row's origin is its line, or the range of its lines.

    All cells are text, of the type :class:`~caldpo.data.raw_row.Cell`.

    Every line is in one row or blank. Of a row that is not CSV, or has another number of cells than the header, each
    line is a bad row of its own: where a quote is never closed, the rows after it are read as text of its cell.

    Raises:
        CaldpoError: (while reading, too) a damaged file, or a header with one name twice.
    """
    # characters; the csv module's own limit of 128 KiB is shorter than long responses
    csv.field_size_limit(max(csv.field_size_limit(), file_opening.MAX_ROW + 1))
    with open_bytes(path) as handle:
        # Bytes that are not UTF-8 become lone surrogates, so that they cost their row and not the file.
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
            if bad := next((match for cell in cells if (match := _NO_UTF8.search(cell))), None):
                yield RawRow(origin, None, f"not UTF-8 (byte 0x{ord(bad[0]) - 0xDC00:02X})")
            elif len(cells) == len(header):
                row = {name: Cell(cell) if cell else None for name, cell in zip(header, cells, strict=True)}
                yield RawRow(origin, row, note=lines.note(len(header)), table=str(path))
            elif cells:  # an empty list is a blank line
                counted = f"{len(cells)} of {len(header)}"
                yield from _lost(path, lines, "not as many cells as the header has", counted)


def _lost(path: Path, lines: _Lines, why: str, detail: str) -> Iterator[RawRow]:
    """Yield a bad row for each line of the row read last."""
    if lines.read > lines.first:
        why += ", most likely for a quote that is never closed"
        detail += f"; lines {lines.first:,} to {lines.read:,}"
    yield RawRow(f"{path}:{lines.first}", None, f"{why} ({detail})")
    for number in range(lines.first + 1, lines.read + 1):
        yield RawRow(f"{path}:{number}", None, f"read as part of a faulty row (which begins in line {lines.first:,})")


class _RowTooLongError(Exception):
    """A row over the limit, with the number of its lines up to there."""

    def __init__(self, lines: int) -> None:
        super().__init__(f"{lines} lines")
        self.lines = lines


class _Lines:
    """The lines of a text, counted, with a limit on the characters of a row."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._left, self.read, self.first = text, file_opening.MAX_ROW, 0, 1
        self._cells: set[int] = set()

    def begin_row(self) -> None:
        """Start another row."""
        self._left, self.first = file_opening.MAX_ROW, self.read + 1
        self._cells.clear()

    def note(self, cells: int) -> str | None:
        """Note what is odd about a good row of several lines; None for a row of one line."""
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
    """Read the header: the first row that is not blank."""
    try:
        header = next((cells for cells in reader if any(map(str.strip, cells))), [])
    except (csv.Error, _RowTooLongError) as error:
        why = too_long("it is") if isinstance(error, _RowTooLongError) else error
        raise CaldpoError(f"its first line is no CSV header ({why})", key=str(path)) from error
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise CaldpoError(f"its header names a column twice ({shown(repeated[0])})", key=str(path))
    return header


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
