"""Look up file names that a user wrote, whatever they are, without a traceback. No heavy imports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from caldpo.errors import CaldpoError

# one of each lies in every folder, or cached repository, with a model or adapter, and with a tokenizer
MODEL_FILES = ("config.json", "adapter_config.json")
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def expanded(text: str) -> Path:
    """Expand ``~`` in a path; leave it where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_there(path: str | Path) -> bool:
    """Tell whether anything has this name; what cannot be a name (too long, a null byte) has not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def why_unwritable(folder: Path) -> str | None:
    """Explain why a folder, which need not exist yet, cannot be made or written to; None where it can."""
    nearest = next((place for place in (folder, *folder.absolute().parents) if os.path.lexists(place)), None)
    if nearest is None or (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        return None
    return f"{nearest} {'cannot be written to' if nearest.is_dir() else 'is no folder'}"


def require_enterable(path: str | Path, **place: Any) -> None:
    """Refuse a path in a folder, or of one, that may not be entered: of what is in there not even a name can be read.

    Raises:
        CaldpoError: naming that folder; ``place`` is its key and value.
    """
    whole = expanded(str(path)).absolute()
    for folder in (*reversed(whole.parents), whole):  # from the root: a folder hides what is below it
        if not is_there(folder):
            return
        if folder.is_dir() and not os.access(folder, os.X_OK):
            remedy = f"have access granted (chmod u+rx {folder}, by its owner), or name another place"
            raise CaldpoError(f"the folder {folder} may not be entered (permission denied)", remedy=remedy, **place)


def from_here(folder: Path) -> Path:
    """Shorten a folder below the current one to its relative path."""
    return folder.relative_to(Path.cwd()) if folder.is_absolute() and folder.is_relative_to(Path.cwd()) else folder
