"""Preference data in local files: JSON lines, JSON, parquet and csv, in any known row format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from caldpo.data.rows import RawRow
from caldpo.data.sources._json import read_json, read_jsonl
from caldpo.data.sources._named import ending, no_rows, require_file
from caldpo.data.sources._tables import read_csv, read_parquet

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
    """Reads the file that ``data.train`` or ``data.test`` names; the row format is detected row by row."""

    name = "local"

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yields the rows of one file in order, a few in memory at a time.

        Args:
            split: path of the file, relative to the working directory or absolute; ``~`` is understood.

        Raises:
            CaldpoError: no such file, a folder, an unknown ending, no access, a damaged file, text that is not UTF-8
                throughout, a table without the columns of any format, or a file without rows.
        """
        path = require_file(split)
        return _not_empty(READERS[ending(path)](path), split)


def _not_empty(rows: Iterator[RawRow], split: str) -> Iterator[RawRow]:
    row = None
    for row in rows:
        yield row
    if row is None:
        raise no_rows(split)
