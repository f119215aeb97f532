"""Read preference data in local files: JSON lines, JSON, parquet and csv, in any known row format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from caldpo.data.raw_row import PairSource, RawRow
from caldpo.data.sources.file_checks import ending, no_rows
from caldpo.data.sources.file_discovery import find_files
from caldpo.data.sources.json_rows import BLANK_BYTES, jsonl_blocks, read_json, read_jsonl
from caldpo.data.sources.table_rows import read_arrow, read_csv, read_parquet
from caldpo.utils.file_names import expanded

READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".json.gz": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".csv.gz": read_csv,
}


class LocalFiles(PairSource):
    """Reads the files that ``data.train`` or ``data.test`` names; the row format is detected row by row."""

    name = "local"

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield the rows of one file or several, in order, a few in memory at a time.

        Args:
            split: a file, a folder, a split in a folder, or a pattern, see :mod:`caldpo.data.sources.file_discovery`.

        Raises:
            CaldpoError: as :func:`~caldpo.data.sources.file_discovery.find_files`; (while reading) a damaged file, text
                that is not UTF-8 throughout, no rows.
        """
        return _rows(self.files(split), split)

    def blocks(self, split: str) -> Iterator[Iterable[RawRow]]:
        """Yield the rows of :meth:`rows` in blocks; JSON lines are decoded where a block is iterated over."""
        files = self.files(split)
        if any(ending(file) not in (".jsonl", ".jsonl.gz") for file in files):
            yield from super().blocks(split)
            return
        empty = True
        for file in files:
            for block in jsonl_blocks(file):
                empty = empty and not any(line.strip(BLANK_BYTES) for line in block.lines)
                yield block
        if empty:
            raise no_rows(split)

    def files(self, split: str) -> tuple[Path, ...]:
        """List the files of ``split``, in order."""
        return find_files(split).files

    def notes(self, split: str) -> tuple[str, ...]:
        """Describe which files a folder or pattern stands for, and what was left out; a line each."""
        return find_files(split).notes

    def held_out(self, split: str) -> str | None:
        """Name the test split in the folder ``split``; None where there is none."""
        return find_files(split).held_out

    def as_test(self, split: str) -> str:
        """Return the test split of a folder that has one, else ``split`` itself."""
        return (find_files(split, training=False).held_out if expanded(split).is_dir() else None) or split


def _rows(files: Sequence[Path], split: str) -> Iterator[RawRow]:
    row = None
    for file in files:
        for row in READERS.get(ending(file), read_arrow)(file):
            yield row
    if row is None:
        raise no_rows(split)
