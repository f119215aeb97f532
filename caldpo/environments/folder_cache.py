"""Folders that are dear to make, made once: whole or not there, also with two runs starting at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from caldpo.errors import CaldpoError
from caldpo.utils.atomic_io import atomic_folder


def cached_folder(cache: Path, name: str, make: Callable[[Path], object], *, key: str) -> Path:
    """The folder ``cache / name``, made by ``make`` if it is not there yet.

    ``make`` fills a folder beside it, which gets its name once it is complete. One process makes it; others
    that want the same one wait for it. What a killed process left behind is cleared away by the next one.

    Args:
        cache: parent folder; created if need be.
        name: says what is inside and, by a digest, what it was made from.
        make: fills the empty folder that it is given.
        key: configuration key of ``cache``, for the message.

    Raises:
        CaldpoError: the parent folder cannot be created or written to.
    """
    folder = cache / name
    if folder.is_dir():
        return folder
    with locked(cache, name, key=key):
        if not folder.is_dir():  # another process may have made it while this one waited
            with atomic_folder(folder) as draft:
                make(draft)
    return folder


@contextmanager
def locked(cache: Path, name: str, *, key: str) -> Iterator[None]:
    """Holds the lock of what is to be made in ``cache``: taken at once, or after saying that it waits.

    Args:
        cache: parent folder; created if need be.
        name: of what is to be made.
        key: configuration key of ``cache``, for the message.

    Raises:
        CaldpoError: the parent folder cannot be created or written to.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            Console(stderr=True).print(f"waiting for another process to make {name}")
            lock.acquire()
    except OSError as error:
        raise CaldpoError(
            f"cannot write there: {error.strerror or error}",
            key=key,
            value=str(cache),
            remedy="name a folder that you may write to",
        ) from error
    try:
        yield
    finally:
        lock.release()
