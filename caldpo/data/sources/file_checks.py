"""Check data files, folders and shards by name, without opening them. No heavy imports here."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from caldpo.config.find_runs import natural
from caldpo.errors import CaldpoError
from caldpo.utils.file_names import expanded, is_there

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv", ".csv.gz")

HELD_OUT = ("test", "validation")  # which of several test splits is taken

_REMEDY = "name a file of preference pairs"
_SHARD = re.compile(r"(?P<before>.*?)(?P<number>\d+)-of-(?P<total>\d+)(?P<after>.*)", re.DOTALL)
_SHOWN = 5  # names in a message
_MAX_SHARDS = 100_000


def require_file(split: str) -> Path:
    """Return the file that ``split`` names; ``~`` is expanded.

    Raises:
        CaldpoError: no such file, an unknown ending, no access, or an empty file. Its key is ``split``.
    """
    path = expanded(split)
    if not is_there(path):
        raise CaldpoError(f"no such file{_neighbours(path)}", key=split, remedy=_remedy_of_missing(split))
    if ending(path) not in ENDINGS:
        raise CaldpoError(
            f"unknown kind of file, its name ends in none of {', '.join(ENDINGS)}", key=split, remedy=_REMEDY
        )
    if not os.access(path, os.R_OK):
        raise CaldpoError("no permission to read this file", key=split, remedy=_REMEDY)
    if path.is_file() and not path.stat().st_size:  # a pipe has no size either
        raise no_rows(split)
    return path


def no_rows(split: str) -> CaldpoError:
    """Return the error of a file or another split without rows."""
    what = "file" if ending(Path(split)) in ENDINGS else "split"
    return CaldpoError(f"the {what} has no rows", key=split, remedy=_REMEDY if what == "file" else "name another split")


def ending(path: Path) -> str:
    """Return the end of a file's name that tells its kind."""
    return "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()


def without_shard(stem: str) -> str:
    """Strip the shard number of a file's name: ``train`` for ``train-00000-of-00003``."""
    match = _SHARD.fullmatch(stem)
    return (match["before"] if match else stem).rstrip("-_. 0123456789")


def find_test_split(split: str, known: Container[str]) -> str | None:
    """Name the test split of a training split among the known ones: ``test_prefs`` beside ``train_prefs``."""
    names = [split.replace("train", other) for other in HELD_OUT if "train" in split]
    return next((name for name in names if name in known), None)


def require_all_shards(files: Iterable[Path], name: str) -> None:
    """Check that no numbered shard is missing.

    A pattern may select some of the shards that exist; one that is not on the disk at all is missing.

    Raises:
        CaldpoError: naming the missing shards, or two numberings of one split side by side. Its key is ``name``.
    """
    numbered: dict[tuple[Path, str, str], dict[str, list[str]]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            group = (file.parent, match["before"], match["after"])
            numbered.setdefault(group, {}).setdefault(match["total"], []).append(match["number"])
    for (folder, before, after), totals in numbered.items():
        if len(totals) > 1:
            first, second = sorted(totals)[:2]
            raise CaldpoError(
                f"shards of {int(first):,} and of {int(second):,} are side by side ({before}*{after}), and may hold the"
                " same rows",
                key=name,
                remedy=f"remove those that are out of date, or name '{folder}/{before}*-of-{second}{after}'",
            )
        ((total, numbers),) = totals.items()
        shards = {
            n: f"{before}{n:0{len(numbers[-1])}d}-of-{total}{after}" for n in range(min(int(total), _MAX_SHARDS) + 1)
        }
        present = {int(number) for number in numbers} | {n for n, shard in shards.items() if (folder / shard).exists()}
        del shards[0 if int(total) in present and 0 not in present else max(shards)]  # counted from 1, or from 0
        if missing := [shard for n, shard in shards.items() if n not in present]:
            raise CaldpoError(
                f"{len(missing):,} of {int(total):,} shards missing in {folder}: {list_names(missing)}",
                key=name,
                remedy="fetch them again; to train without them, name the files in a list (data=local)",
            )


def list_names(names: Sequence[str]) -> str:
    """List the first few names, and count the others."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def list_contents(folder: Path) -> str:
    """List what a folder holds without hidden names, to follow a message; nothing where it cannot be listed."""
    try:
        paths = list(folder.iterdir())
        names = sorted((path.name + "/" * path.is_dir() for path in paths if _is_visible(path)), key=natural)
    except OSError:
        return ""
    held = f"holds {list_names(names)}" if names else "holds hidden names alone" if paths else "is empty"
    return f"; {folder.resolve()} {held}"  # "." names no folder


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _remedy_of_missing(split: str) -> str:
    """Return the remedy for a missing file whose name may be that of a hub data set."""
    address = re.fullmatch(r"(?:hf://datasets/|https://huggingface\.co/datasets/)([\w.-]+/[\w.-]+).*", split)
    if address or (re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", split) and ending(Path(split)) not in ENDINGS):
        return f"{_REMEDY}; for a data set of the hub: data=hub data.path={address[1] if address else split}"
    return f"download it and {_REMEDY}" if "://" in split else _REMEDY


def _neighbours(path: Path) -> str:
    """Name data files beside a missing one, or a folder: those with a similar name if there are any."""
    try:
        visible = list(filter(_is_visible, path.parent.iterdir()))
        names = sorted((p.name for p in visible if ending(p) in ENDINGS), key=natural)
        folders = [f"{p.name}/" for p in visible if p.is_dir()]
    except (OSError, ValueError):  # no folder, no access, no valid name
        return "" if is_there(path.parent) else f", and no folder {path.parent}"
    if near := difflib.get_close_matches(path.name, [*names, *folders], n=2, cutoff=0.6):
        return f"; did you mean {' or '.join(near)}"
    return f"; {path.parent.resolve()} holds {f'the data files {list_names(names)}' if names else 'no data files'}"
