"""Texts as names of files and folders: whatever somebody writes, the answer is no traceback. No heavy imports."""

from __future__ import annotations

from pathlib import Path


def expanded(text: str) -> Path:
    """``text`` as a path, with ``~`` replaced; as it is where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_there(path: str | Path) -> bool:
    """Whether anything has this name; what cannot be a name (too long, a null byte) has not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False
