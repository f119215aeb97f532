"""Folders that ``datasets`` wrote with ``save_to_disk``: what lies in them, and the rows of their Arrow files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from caldpo.errors import CaldpoError

_STATE, _DICT = "state.json", "dataset_dict.json"  # of a Dataset, of a DatasetDict


def is_saved(folder: Path) -> bool:
    """Whether a ``Dataset`` was saved in this folder."""
    return (folder / _STATE).is_file() and (folder / "dataset_info.json").is_file()


def saved_splits(folder: Path) -> list[str] | None:
    """The splits of the ``DatasetDict`` that was saved in this folder; None where none was."""
    if not (folder / _DICT).is_file():
        return None
    listed = _read(folder / _DICT).get("splits")
    if not isinstance(listed, list) or not all(isinstance(split, str) for split in listed):
        raise CaldpoError("lists no splits", key=str(folder / _DICT), remedy="save the data set again")
    missing = [split for split in listed if Path(split).name != split or not is_saved(folder / split)]
    if missing:
        raise CaldpoError(f"its split {missing[0]} is missing", key=str(folder), remedy="save the data set again")
    return listed


def saved_files(folder: Path, name: str) -> tuple[Path, ...]:
    """The Arrow files of a saved ``Dataset``, in the order of its rows.

    Raises:
        CaldpoError: a file of it is missing, or what lists them is damaged. Its key is ``name``.
    """
    listed = _read(folder / _STATE).get("_data_files")
    names = [item.get("filename") if isinstance(item, dict) else None for item in listed or []]
    if not names or any(not isinstance(file, str) or Path(file).name != file for file in names):
        raise CaldpoError(f"{folder / _STATE} lists no data files", key=name, remedy="save the data set again")
    missing = [file for file in names if not (folder / str(file)).is_file()]
    if missing:
        raise CaldpoError(
            f"{len(missing):,} of {len(names):,} files of the saved data set are missing: {missing[0]}",
            key=name,
            remedy="copy the whole folder, or save the data set again",
        )
    return tuple(folder / str(file) for file in names)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaldpoError(f"cannot be read: {error}", key=str(path), remedy="save the data set again") from error
    return found if isinstance(found, dict) else {}
