"""SHA-256 digests of values, of files, and of what a configuration names. No heavy imports."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from caldpo.utils.yaml_io import flatten, texts_in

CHUNK = 32 * 2**20  # bytes hashed at a time: large enough for threads to pay, small enough to share them out
_MOST_FILES = 1000  # of a folder that are read; of what comes after them, the size and the time of the last change


def json_digest(content: Any) -> str:
    """Digest plain values, whatever the order of their keys; caches and identities rest on it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Digest a file: SHA-256 over the SHA-256 of each chunk, read by several threads."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pieces = pool.map(lambda start: _piece_digest(path, start), range(0, path.stat().st_size, CHUNK))
        return hashlib.sha256(b"".join(pieces)).hexdigest()


def known_digest(path: Path) -> str:
    """Digest a file as :func:`file_digest`, once a process as long as the system says that it is unchanged.

    A program can set back the size and the time of writing of a file, but not the time of its last change (ctime).
    """
    state = path.stat()
    return _digest_of(path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def full_folder_digest(folder: Path) -> str:
    """Digest names and contents of all files in a folder, hidden ones too: times and sizes may hide a change."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return _lines_digest(f"{file.relative_to(folder)} {file_digest(file)}" for file in files)


def path_digests(tree: Any, place: str = "") -> dict[str, str]:
    """Digest the contents of the paths of this machine in a configuration, by the key whose value is, or holds, them.

    Other contents under the same path are other inputs. ``place`` is the key of the tree itself.
    """
    by_key = {}
    for key, value in (flatten(tree, place) if isinstance(tree, Mapping) else {place: tree}).items():
        digests = {text: digest for text in texts_in(value) if text and (digest := _path_digest(Path(text)))}
        if digests:
            by_key[key] = _lines_digest(f"{text} {digest}" for text, digest in sorted(digests.items()))
    return by_key


@functools.lru_cache(maxsize=10_000)
def _digest_of(path: Path, *unchanged: int) -> str:
    return file_digest(path)


def _piece_digest(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(CHUNK)).digest()


def _path_digest(path: Path) -> str | None:
    """Digest a file, or names and contents in a folder but hidden ones; None where nothing is there to read."""
    try:
        path = path.expanduser()
        if path.is_file():
            return known_digest(path)
        if not path.is_dir():
            return None
        names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
        shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        return _lines_digest(
            f"{name} {known_digest(path / name) if number < _MOST_FILES else _last_change(path / name)}"
            for number, name in enumerate(shown)
        )
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user's home, a null byte
        return None


def _last_change(file: Path) -> str:
    state = file.stat()
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _lines_digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
