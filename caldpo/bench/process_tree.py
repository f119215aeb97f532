"""Run a command and measure its whole process tree: ``python process_tree.py ANSWER COMMAND [ARGUMENT ...]``.

A small process of its own, with the standard library alone: the peak that Linux reports of a process is never less than
that of the one which started it. Writes a :class:`TreeUsage` as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.2  # between two looks at the memory of the tree
_GRACE_SECONDS = 5.0  # for processes that outlive the command
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, see prctl(2)
_PROC = Path("/proc")


@dataclass(frozen=True)
class TreeUsage:
    """What a command and all processes that it started have used."""

    exit_code: int
    wall_seconds: float
    cpu_seconds: float  # user and system, of all processes, also of those that outlived the command
    peak_bytes: int  # of all processes together, shared pages once: sampled, and no less than the largest process's
    largest_bytes: int  # peak resident set of the largest process


def run_tree(command: list[str]) -> TreeUsage:
    """Run a command to its end, with this process's output, and measure its tree."""
    _adopt_orphans()
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], sum(map(_own_bytes, _descendants())))

    before = _cpu_seconds()
    started = time.perf_counter()
    process = subprocess.Popen(command)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    code = process.wait()
    wall = time.perf_counter() - started
    ended.set()
    watcher.join()
    _end_descendants()
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return TreeUsage(code, wall, _cpu_seconds() - before, max(peak[0], largest), largest)


def _adopt_orphans() -> None:
    """Become the parent of processes whose own has ended, so that their CPU time is counted; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _cpu_seconds() -> float:
    """Count the CPU seconds of all children that have been waited for, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _descendants() -> list[int]:
    """List the processes below this one; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in _PROC.glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it has ended
        children.setdefault(parent, []).append(int(stat.parent.name))

    def below(pid: int) -> Iterator[int]:
        for child in children.get(pid, ()):
            yield child
            yield from below(child)

    return list(below(os.getpid()))


def _own_bytes(pid: int) -> int:
    """Read a process's proportional set size: each shared page counts in parts; 0 where it cannot be read."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _end_descendants() -> None:
    """End what outlived the command, and wait for it: only then its CPU time is known."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                return


def main(answer: str, *command: str) -> None:
    """Write the usage of ``command`` into the file ``answer``."""
    Path(answer).write_text(json.dumps(asdict(run_tree(list(command)))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
