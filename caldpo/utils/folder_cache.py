"""Cache folders that are expensive to make: complete or absent, also with two runs starting at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from caldpo.errors import CaldpoError
from caldpo.utils.atomic_io import atomic_folder
from caldpo.utils.stream_console import Console


def cached_folder(cache: Path, name: str, make: Callable[[Path], object], *, key: str) -> Path:
    """Return the folder ``cache / name``, made by ``make`` if it does not exist yet.

    ``make`` fills a temporary folder, which is renamed once it is complete. One process makes it; others wait for it.
    The next process removes what a killed one left behind. The ``name`` holds a digest of the inputs.

    Raises:
        CaldpoError: about the configuration's ``key``: the parent folder cannot be created or written to.
    """
    folder = cache / name
    if folder.is_dir():
        return folder
    with locked(cache, name, key=key):
        if not folder.is_dir():  # another process may have made it meanwhile
            with atomic_folder(folder) as draft:
                make(draft)
    return folder


@contextmanager
def locked(cache: Path, name: str, *, key: str) -> Iterator[None]:
    """Hold the lock of an entry of ``cache``: taken at once, or after a message that the process waits."""
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
