"""Digests of the files and folders that a configuration names: other contents under the same path are other inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caldpo.utils.atomic_io import known_digest
from caldpo.utils.yaml_io import flatten, texts_in

_MOST_FILES = 1000  # of a folder that are read; of what comes after them, the size and the time of the last change


def path_digests(tree: Any, place: str = "") -> dict[str, str]:
    """Digest the contents of the paths in a configuration, by the key whose value is, or holds, a path of this machine.

    Args:
        tree: a nested mapping, or the value of ``place``.
        place: key of the tree itself.
    """
    by_key = {}
    for key, value in (flatten(tree, place) if isinstance(tree, Mapping) else {place: tree}).items():
        digests = {text: there for text in texts_in(value) if text and (there := _digest(Path(text)))}
        if digests:
            by_key[key] = _sha256(f"{text} {digest}" for text, digest in sorted(digests.items()))
    return by_key


def _bounded_folder_digest(folder: Path) -> str:
    """Digest the files below a folder, without hidden ones, and of those after the first 1,000 the size and times."""
    files = sorted(f for f in folder.rglob("*") if _counts(f, folder))
    return _sha256(
        f"{file.relative_to(folder)} {known_digest(file) if number < _MOST_FILES else _changed(file)}"
        for number, file in enumerate(files)
    )


def _digest(path: Path) -> str | None:
    """Digest a file or folder; None where the text is no path, or of nothing that can be read."""
    try:
        path = path.expanduser()
        if path.is_file():
            return known_digest(path)
        return _bounded_folder_digest(path) if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user's home, a null byte
        return None


def _changed(file: Path) -> str:
    state = file.stat()
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _counts(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _sha256(lines: Iterator[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
