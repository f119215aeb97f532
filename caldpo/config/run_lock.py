"""Lock a run's folder for one writing process; another one learns who holds it. No heavy imports.

The lock is a ``FileLock`` on a hidden file of the folder: it goes with the process that holds it, however that ends, so
that what a killed one leaves behind blocks no other run. A small file beside it names the holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caldpo.errors import CaldpoError
from caldpo.security.secrets import redact_text
from caldpo.utils.atomic_io import NO_LOCKS, is_alive, write_text
from caldpo.utils.process_rank import process_rank

if TYPE_CHECKING:
    from filelock import FileLock

RUN, EVALUATION, GENERATION = "run", "evaluation", "generation"  # what is written, each by one process at a time
_PATIENCE = 1.0  # seconds: another one may be looking whether the lock is held, which takes it for a moment
_LOOK_AGAIN = 0.02
_LONGEST = 300  # characters of a command line that are shown


@contextlib.contextmanager
def run_lock(folder: Path, what: str = RUN) -> Iterator[None]:
    """Hold the lock of a run's folder until the context ends, on the first rank; other ranks write nothing.

    Writers of different things do not exclude each other. A file system without locks is noted, and nothing stops a
    second process there.

    Raises:
        CaldpoError: another process has it; names that process.
    """
    if process_rank():
        yield
        return
    from filelock import FileLock  # a hundred modules: not for a command that is refused

    lock = FileLock(_lock_file(folder, what), fallback_to_soft=False)  # of it a killed process leaves the marker
    locked, process = _acquire(lock, folder, what), os.getpid()
    owner = _owner_file(folder, what)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            content = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": " ".join(redact_text(shlex.join(sys.orig_argv)).split())[:_LONGEST],
                "locked": locked,
            }
            write_text(owner, json.dumps(content, indent=2) + "\n")
        yield
    finally:
        if os.getpid() == process:  # else this is a forked process, and the lock its parent's
            for file in (owner, _lock_file(folder, what)):  # while it is held, so that nobody else's is removed
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
            lock.release()


def is_held(folder: Path, what: str = RUN) -> bool:
    """Tell whether a living process, this one included, holds the lock of ``folder``, which may be read-only."""
    owner = read_owner(folder, what)
    if owner is not None and owner.get("locked") is False:
        return owner.get("host") != socket.gethostname() or is_alive(int(owner.get("pid", 0)))
    try:  # not by a FileLock, which makes the file and has to write it
        handle = os.open(_lock_file(folder, what), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # gone again with the handle
    except OSError as error:
        return error.errno not in NO_LOCKS
    finally:
        os.close(handle)
    return False


def require_free(folder: Path, key: str) -> None:
    """Raise as :func:`run_lock` where another process writes a folder, before anything is written into it."""
    if not process_rank() and is_held(folder):
        raise _taken(folder, RUN, key)


def read_owner(folder: Path, what: str = RUN) -> dict[str, Any] | None:
    """Read who holds the lock, or held it last and was killed: pid, host, since, command; None where unknown."""
    try:
        content = json.loads(_owner_file(folder, what).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _acquire(lock: FileLock, folder: Path, what: str) -> bool:
    """Acquire the lock, or raise CaldpoError; False where the file system has none."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=_PATIENCE, poll_interval=_LOOK_AGAIN)
    except Timeout:
        raise _taken(folder, what, "folder") from None
    except OSError as error:
        if error.errno in NO_LOCKS:
            print(f"note: {folder} lies where files have no locks: no second process may write it", file=sys.stderr)
            return False
        wrong, remedy = f"its lock cannot be made: {error.strerror or error}", "name a folder that you may write to"
        raise CaldpoError(wrong, key="folder", value=str(folder), remedy=remedy) from error
    return True


def _taken(folder: Path, what: str, key: str) -> CaldpoError:
    owner = read_owner(folder, what) or {}
    pid, host = owner.get("pid", "unknown"), owner.get("host", "unknown")
    holder = f"process {pid} on {host}, since {owner.get('since', 'unknown')}"
    command = f": {owner['command']}" if owner.get("command") else ""
    doing = {RUN: "trains there", EVALUATION: "evaluates there", GENERATION: "samples there"}.get(what, "writes there")
    stop = f"kill {pid}" + (f" on {host}" if host != socket.gethostname() else "")
    remedy = f"wait until it has ended, stop it ({stop}), or name another folder"
    return CaldpoError(f"another process {doing} ({holder}{command})", key=key, value=str(folder), remedy=remedy)


def _lock_file(folder: Path, what: str) -> Path:
    return folder.absolute() / f".{what}.lock"


def _owner_file(folder: Path, what: str) -> Path:
    return folder.absolute() / f".{what}.owner.json"
