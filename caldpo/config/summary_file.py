"""Read ``summary.json`` of a run's folder, which may be damaged. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caldpo.errors import CaldpoError
from caldpo.utils.yaml_io import read_json

SUMMARY = "summary.json"
# entries of the summary that others rely on, and their types
_ENTRIES = {
    **dict.fromkeys(("error", "loss_name", "reference"), str),
    **dict.fromkeys(("stretches", "planned_steps", "steps", "seed"), int),
    **dict.fromkeys(("metrics", "data", "versions"), dict),
    **dict.fromkeys(("overrides", "extensions"), list),
}


def read_summary(folder: Path) -> dict[str, Any]:
    """Read the ``summary.json`` of a run's folder, empty when there is none.

    An entry that the project reads and that has another type than it writes is left out.

    Raises:
        CaldpoError: it is no JSON object, its status is none, or the disk does not give it.
    """
    path = folder / SUMMARY
    try:
        content = read_json(path) if path.is_file() else {}
        if not isinstance(content, dict) or not isinstance(content.get("status", ""), str):
            raise ValueError("it is no object with a status that is text")
    except (OSError, ValueError) as error:
        raise CaldpoError(
            f"cannot be read: {error}", key=str(path), remedy="restore it, or remove it: runs write a new one"
        ) from error
    return {key: value for key, value in content.items() if type(value) is _ENTRIES.get(key, type(value))}


def known_summary(folder: Path) -> dict[str, Any]:
    """Read the summary as :func:`read_summary`, and as empty where it is damaged.

    Raises:
        CaldpoError: the disk does not give it; what it holds is not known, and must not be written over.
    """
    try:
        return read_summary(folder)
    except CaldpoError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return {}
