"""Shards: files that hold one split together, ``train-00000-of-00003.parquet``. No heavy imports here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from caldpo.errors import CaldpoError

_SHARD = re.compile(r"(?P<before>.*?)(?P<number>\d+)-of-(?P<total>\d+)(?P<after>.*)", re.DOTALL)
_SHOWN = 5
_MOST = 100_000  # shards looked for


def without_shard(stem: str) -> str:
    """A file's name without the number of its shard: ``train`` for ``train-00000-of-00003``."""
    found = _SHARD.fullmatch(stem)
    return (found["before"] if found else stem).rstrip("-_. 0123456789")


def require_whole(files: Iterable[Path], name: str) -> None:
    """Check that of numbered shards none is missing.

    A pattern may ask for some of the shards that there are; one that is not on the disk at all is missing.

    Args:
        files: that are to be read.
        name: what the person called them; the key of the error.

    Raises:
        CaldpoError: naming the missing shards, or two numberings of one split side by side.
    """
    numbered: dict[tuple[Path, str, str], dict[str, set[int]]] = {}
    widths: dict[tuple[Path, str, str], int] = {}
    for file in files:
        if found := _SHARD.fullmatch(file.name):
            group = (file.parent, found["before"], found["after"])
            numbered.setdefault(group, {}).setdefault(found["total"], set()).add(int(found["number"]))
            widths[group] = len(found["number"])
    for group, totals in numbered.items():
        folder, before, after = group
        if len(totals) > 1:
            first, second = sorted(totals)[:2]
            raise CaldpoError(
                f"shards of {int(first):,} and of {int(second):,} lie side by side ({before}*{after}), and rows may be"
                " there twice",
                key=name,
                remedy=f"remove those that are out of date, or name '{folder}/{before}*-of-{second}{after}'",
            )
        ((total, present),) = totals.items()
        names = {n: f"{before}{n:0{widths[group]}d}-of-{total}{after}" for n in range(min(int(total), _MOST) + 1)}
        there = {n for n, shard in names.items() if n in present or (folder / shard).exists()}
        one_too_many = 0 if int(total) in there and 0 not in there else max(names)  # they count from 1, or from 0
        missing = [shard for n, shard in names.items() if n not in there and n != one_too_many]
        if missing:
            more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
            raise CaldpoError(
                f"{len(missing):,} of {int(total):,} shards missing in {folder}: {', '.join(missing[:_SHOWN])}{more}",
                key=name,
                remedy="fetch them again; to train without them, name the files in a list (data=local)",
            )
