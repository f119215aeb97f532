"""Preference data in local files: JSON lines, JSON, parquet and csv, in any known row format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from caldpo.data.raw_row import RawRow
from caldpo.data.sources._file_discovery import find_files
from caldpo.data.sources._file_names import ending, expanded, no_rows
from caldpo.data.sources._json_rows import read_json, read_jsonl
from caldpo.data.sources._table_rows import read_arrow, read_csv, read_parquet

READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".json.gz": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".csv.gz": read_csv,
}


class LocalFiles:
    """Reads the files that ``data.train`` or ``data.test`` names; the row format is detected row by row."""

    name = "local"

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yields the rows of one file or of several, in order, a few in memory at a time.

        Args:
            split: a file, a folder, a split in a folder, or a pattern, see :mod:`caldpo.data.sources._file_discovery`.

        Raises:
            CaldpoError: no such file, an unknown ending, no access, a damaged file, text that is not UTF-8 throughout,
                a table without the columns of any format, no rows; a folder or pattern without data files, with files
                of several kinds, or with a missing shard.
        """
        files = self.files(split)
        return _not_empty((row for file in files for row in _reader(file)(file)), split)

    def files(self, split: str) -> tuple[Path, ...]:
        """The files that are read for ``split``, in their order."""
        return find_files(split).files

    def notes(self, split: str) -> tuple[str, ...]:
        """Which files a folder or pattern stands for, and what was left out; a line each."""
        return find_files(split).notes

    def held_out(self, split: str) -> str | None:
        """The name of the test split that lies in the folder ``split``; None where there is none."""
        return find_files(split).held_out

    def as_test(self, split: str) -> str:
        """What ``split`` stands for where held-out pairs are asked for: of a folder that has one, its test split."""
        return (find_files(split, training=False).held_out if expanded(split).is_dir() else None) or split


def _reader(file: Path) -> Callable[[Path], Iterator[RawRow]]:
    return READERS.get(ending(file), read_arrow)


def _not_empty(rows: Iterator[RawRow], split: str) -> Iterator[RawRow]:
    row = None
    for row in rows:
        yield row
    if row is None:
        raise no_rows(split)
