"""Preference data in local files: JSON lines, JSON, parquet and csv, in any known row format."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path

from caldpo.data.rows import RawRow
from caldpo.data.sources._json import read_json, read_jsonl
from caldpo.data.sources._tables import read_csv, read_parquet
from caldpo.errors import CaldpoError

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
        """Yields the rows of one file in order, without holding it in memory (a ``.json`` list apart).

        Args:
            split: path of the file, relative to the working directory or absolute; ``~`` is understood.

        Raises:
            CaldpoError: no such file, a folder, an unknown ending, a damaged file, or a file without rows.
        """
        path = Path(split).expanduser()
        reader = READERS.get(_ending(path))
        if not path.exists():
            raise CaldpoError(f"no such file{_neighbours(path)}", key=split, remedy=_REMEDY)
        if path.is_dir():
            raise CaldpoError(
                f"a folder, not a file{_listing(path)}",
                key=split,
                remedy=f"{_REMEDY}; for a folder of parquet shards use "
                "data.source._target_=caldpo.data.sources.hub.HubDataset data.source.path=FOLDER",
            )
        if reader is None:
            raise CaldpoError(
                f"unknown kind of file, its name ends in none of {', '.join(READERS)}",
                key=split,
                remedy=_REMEDY,
            )
        return _not_empty(reader(path), split)


_REMEDY = "name a file of preference pairs"


def _ending(path: Path) -> str:
    return "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()


def _not_empty(rows: Iterator[RawRow], split: str) -> Iterator[RawRow]:
    row = None
    for row in rows:
        yield row
    if row is None:
        raise CaldpoError("the file has no rows", key=split, remedy=_REMEDY)


def _neighbours(path: Path) -> str:
    """Data files beside a missing one: those with a similar name if there are any."""
    if not path.parent.is_dir():
        return f", and no folder {path.parent}"
    names = _data_files(path.parent)
    near = difflib.get_close_matches(path.name, names, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}" if near else _listing(path.parent)


def _listing(folder: Path) -> str:
    names, folder = _data_files(folder), folder.resolve()  # "." names no folder to a person
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"; data files in {folder}: {', '.join(names[:5])}{more}" if names else f"; {folder} has no data files"


def _data_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if _ending(p) in READERS)
