"""Data files and folders as settings name them, looked at without opening them. No heavy imports here."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from pathlib import Path

from caldpo.errors import CaldpoError
from caldpo.utils.atomic_io import file_digest

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv", ".csv.gz")

_REMEDY = "name a file of preference pairs"


def require_file(split: str) -> Path:
    """The file that ``split`` names.

    Args:
        split: path of the file, relative to the working directory or absolute; ``~`` is understood.

    Raises:
        CaldpoError: no such file, a folder, an unknown ending, no access, or an empty file. Its key is ``split``.
    """
    path = expanded(split)
    if not is_there(path):
        raise CaldpoError(f"no such file{_neighbours(path)}", key=split, remedy=_remedy_of_missing(split))
    if path.is_dir():
        raise CaldpoError(f"a folder, not a file{_listing(path)}", key=split, remedy=_REMEDY)
    if ending(path) not in ENDINGS:
        raise CaldpoError(
            f"unknown kind of file, its name ends in none of {', '.join(ENDINGS)}", key=split, remedy=_REMEDY
        )
    if not os.access(path, os.R_OK):
        raise CaldpoError("you may not read this file", key=split, remedy=_REMEDY)
    if path.is_file() and not path.stat().st_size:  # a pipe has no size either
        raise no_rows(split)
    return path


def _remedy_of_missing(split: str) -> str:
    """What to do about a name that may be one of the hub's."""
    address = re.fullmatch(r"(?:hf://datasets/|https://huggingface\.co/datasets/)([\w.-]+/[\w.-]+).*", split)
    if address or (re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", split) and ending(Path(split)) not in ENDINGS):
        return f"{_REMEDY}; for a data set of the hub: data=hub data.path={address[1] if address else split}"
    return f"download it and {_REMEDY}" if "://" in split else _REMEDY


def no_rows(split: str) -> CaldpoError:
    """What to say of a file or another split without rows."""
    what = "file" if ending(Path(split)) in ENDINGS else "split"
    return CaldpoError(f"the {what} has no rows", key=split, remedy=_REMEDY if what == "file" else "name another split")


def expanded(path: str) -> Path:
    """``path`` with ``~`` replaced; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_there(path: Path) -> bool:
    """Whether anything has this name; what cannot be a name (too long) has not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files in a folder: times and sizes can stay when contents change."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    lines = [f"{file.relative_to(folder)} {file_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def ending(path: Path) -> str:
    """The end of a file's name that says of which kind it is."""
    return "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()


def _neighbours(path: Path) -> str:
    """Data files beside a missing one: those with a similar name if there are any."""
    try:
        beside = path.parent.is_dir()
    except (OSError, ValueError):
        return ""  # no name for anything
    if not beside:
        return f", and no folder {path.parent}"
    names = _data_files(path.parent)
    near = difflib.get_close_matches(path.name, names, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}" if near else _listing(path.parent)


def _listing(folder: Path) -> str:
    names, folder = _data_files(folder), folder.resolve()  # "." names no folder to a person
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"; data files in {folder}: {', '.join(names[:5])}{more}" if names else f"; {folder} has no data files"


def _data_files(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if ending(p) in ENDINGS)
    except OSError:
        return []
