"""Rows of parquet and csv files. A table has a cell in every column, so an empty one means: not given."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from caldpo.data.formats._fields import decode_conversation
from caldpo.data.rows import RawRow
from caldpo.data.sources._open import open_bytes
from caldpo.errors import CaldpoError

_BATCH = 1024  # rows in memory at a time
_MAX_CELL = 2**26  # characters; the csv module's own limit of 128 KiB is shorter than long responses


def given(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` without its nulls: a table cannot leave a column out of one row."""
    return {name: value for name, value in row.items() if value is not None}


def read_parquet(path: Path) -> Iterator[RawRow]:
    """The rows of a parquet file, counted from 0."""
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    yield RawRow(f"{path}[{number}]", given(row))
                    number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CaldpoError(
            f"no readable parquet file ({str(error).splitlines()[0]})",
            key=str(path),
            remedy="copy or download it again",
        ) from error


def read_csv(path: Path) -> Iterator[RawRow]:
    """The rows of a comma-separated file with a header; a row's origin is the line on which it begins.

    All cells are text, but for two cases in which csv has no other way to say it: ``score_chosen`` and
    ``score_rejected`` are numbers, and a ``prompt``, ``chosen`` or ``rejected`` cell that is the JSON of a
    list of messages is that list.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
    with open_bytes(path) as handle:
        # Bytes that are no UTF-8 become lone surrogates, so that they cost their row and not the file.
        text = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        header = _header(reader, path)
        while True:
            origin = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(origin, None, f"not CSV ({error})")
                continue
            if len(cells) == len(header):
                yield RawRow(origin, _typed(dict(zip(header, cells, strict=True))))
            elif cells:  # an empty list is a blank line
                yield RawRow(origin, None, f"not as many cells as the header has ({len(cells)} of {len(header)})")


def _header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        header = next((cells for cells in reader if cells), [])  # a blank line has no cells
    except csv.Error as error:
        raise CaldpoError(f"its first line is no CSV header ({error})", key=str(path)) from error
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise CaldpoError(f"its header names a column twice ({', '.join(repeated)})", key=str(path))
    return header


def _typed(cells: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {name: cell for name, cell in cells.items() if cell != ""}
    for name in ("score_chosen", "score_rejected"):
        try:
            row[name] = float(row[name])
        except (KeyError, ValueError):
            continue  # absent, or left as the text it is, which the format refuses
    for name in ("prompt", "chosen", "rejected"):
        if (messages := decode_conversation(row.get(name, ""))) is not None:
            row[name] = messages
    return row
