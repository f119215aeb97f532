"""Look up file names that a user wrote, whatever they are, without a traceback. No heavy imports."""

from __future__ import annotations

from pathlib import Path


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
