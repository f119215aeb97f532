"""Write files and folders atomically. No heavy imports.

Everything is drafted beside its place, flushed to the disk, and renamed: a reader never sees half of it, and neither a
kill nor a full disk costs what was there before.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import io
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems without flock answer
_PARTIAL = ".partial"
_FOREIGN_AFTER = 86400.0  # seconds after which another machine's draft is taken for left behind
_LONGEST = 200  # characters of a name that go into its draft's: file systems allow 255
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_numbers = itertools.count()
_drafts: set[str] = set()  # names under which this process writes, or has written


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a draft to write to, which gets the file's name once it is complete and on the disk.

    What is there stays until then. Drafts of the same file that killed processes left are cleared away.

    Raises:
        OSError: it cannot be written; names the file. The draft is removed.
    """
    _clear_drafts(path)
    draft = _draft(path)
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        _name(error, path, draft)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a draft folder to fill, which gets its name once it is complete and on the disk.

    A folder that has the name already is replaced: at every moment one of the two has it, where the system can
    exchange names. Of drafts that killed processes left, those of ``path`` are cleared away: whoever writes it has to
    be alone in doing so. Its files may be read by whom umask lets.

    Raises:
        OSError: it cannot be written; names the folder. The draft is removed.
    """
    _clear_drafts(path, alone=True)
    draft = _draft(path)
    try:
        draft.mkdir(parents=True)
        yield draft
        inside = list(draft.rglob("*"))
        readable = draft.stat().st_mode & 0o666  # as umask has it: safetensors gives its files to their owner alone
        for file in (f for f in inside if f.is_file() and not f.is_symlink()):
            with contextlib.suppress(OSError):  # on a file system without modes, or of another user
                file.chmod(readable)
            _sync(file)
        for folder in (draft, *(f for f in inside if f.is_dir() and not f.is_symlink())):
            sync_folder(folder)
        _give_name(draft, path)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        _name(error, path, draft)
        raise
    sync_folder(path.parent)
    shutil.rmtree(draft, ignore_errors=True)  # the earlier one, if there was any


@contextlib.contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """Open a draft as :func:`atomic_file`, for text in UTF-8 with line ends as given (as the csv module wants it)."""
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.detach()  # flushes, and leaves the file open


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all, as :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def append_text(path: Path, text: str) -> None:
    """Add whole lines, each with its newline, to a text file in UTF-8, beside other processes that do.

    A last line without its end, as a power cut leaves one, is ended first. What cannot be written whole is taken back.

    Raises:
        OSError: it cannot be written; names the file.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # without locks a single write still is one piece on local disks
                fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            content = (b"\n" if torn else b"") + text.encode("utf-8")
            try:
                if os.write(handle, content) != len(content):  # a full disk takes what fits
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)  # and with it the lock
    except OSError as error:
        _name(error, path, path)
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    with contextlib.suppress(OSError):  # some file systems cannot, and say so
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine runs, whosoever it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # there, and not ours
    return True


def _draft(path: Path) -> Path:
    """Make a hidden name beside ``path`` that no other thread, process or machine takes."""
    name = f"{_prefix(path)}{_machine()}-{os.getpid()}-{next(_numbers)}{_PARTIAL}"
    _drafts.add(name)
    return path.with_name(name)


def _prefix(path: Path) -> str:
    return f".{path.name[:_LONGEST]}."


@functools.cache
def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _clear_drafts(path: Path, *, alone: bool = False) -> None:
    """Remove the drafts of ``path`` that nobody is writing; ``alone``: every one, as this process alone writes it."""
    with contextlib.suppress(OSError):
        for draft in [entry for entry in path.parent.iterdir() if _owner(entry.name, path)]:
            if alone or _is_left_behind(draft, _owner(draft.name, path)):
                if draft.is_dir() and not draft.is_symlink():
                    shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.unlink(missing_ok=True)


def _owner(name: str, path: Path) -> str:
    """Read a draft's writer from its name; empty where ``name`` is no draft of ``path``."""
    if not name.startswith(_prefix(path)) or not name.endswith(_PARTIAL):
        return ""
    owner = name[len(_prefix(path)) : -len(_PARTIAL)]
    return "" if "." in owner else owner  # of another file, whose name begins with this one's


def _is_left_behind(draft: Path, owner: str) -> bool:
    machine, _, rest = owner.partition("-")
    pid = rest.partition("-")[0]
    if machine == _machine() and pid.isdigit():
        # numbers are given again: in a restarted container, to the very same process
        return not is_alive(int(pid)) if int(pid) != os.getpid() else draft.name not in _drafts
    return time.time() - draft.stat().st_mtime > _FOREIGN_AFTER


def _give_name(draft: Path, path: Path) -> None:
    """Rename a folder to ``path``; one that is there comes to lie under the draft's name."""
    if not path.exists():
        draft.rename(path)
    elif not _exchange(draft, path):
        aside = draft.with_name(f"{draft.name[: -len(_PARTIAL)]}-old{_PARTIAL}")
        path.rename(aside)
        try:
            draft.rename(path)
        except OSError:
            aside.rename(path)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _name(error: BaseException, path: Path, draft: Path) -> None:
    """Let an error of the system that names nothing, or the draft, name the file that was wanted."""
    if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(draft), draft):
        error.filename = str(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
