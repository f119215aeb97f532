"""Bound the memory and processor time of untrusted work. No heavy imports.

A chat template can ask for gigabytes in one expression, or loop for years, which Jinja's sandbox does not stop.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_STATM = "/proc/self/statm"  # sizes of this process in pages, the first of them that of its address space
_PAGE = resource.getpagesize()  # bytes
_AGAIN = 0.5  # seconds of processor time between further tries, where the first was caught by the work itself


class TooLong(BaseException):
    """The work has used up its processor time. No Exception, as nothing that catches errors may swallow it."""


@contextlib.contextmanager
def bounded(*, mebibytes: int, seconds: float) -> Iterator[None]:
    """Stop the work within the context once it has taken too much. Costs microseconds; not to be nested.

    Memory is bounded on Linux, for the whole process. Time is bounded in the main thread, where alone Python handles
    signals.

    Args:
        mebibytes: address space beyond what the process has now.
        seconds: processor time of the process, so that a busy machine does not count.

    Raises:
        MemoryError: from the work, where it asks for more memory.
        TooLong: where it takes more time.
    """
    limits = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + mebibytes * 2**20
    lowered = limit > mebibytes * 2**20 and (limits[0] == resource.RLIM_INFINITY or limit < limits[0])
    timed = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGPROF, _stop) if timed else None
    try:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, seconds, _AGAIN)
        if lowered:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limits[1]))
        try:
            yield
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_PROF, 0)  # time may be up right before this: hence once more below
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if lowered:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        if timed:
            # by default the signal kills, and one may be on its way to another thread still
            signal.signal(signal.SIGPROF, signal.SIG_IGN if before in (None, signal.SIG_DFL) else before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


def _address_space() -> int:
    """Read the size of this process's address space, bytes; 0 where the system does not say."""
    try:
        file = os.open(_STATM, os.O_RDONLY)  # plainly, since this is done for every pair of a data set
    except OSError:
        return 0
    try:
        return int(os.read(file, 64).split()[0]) * _PAGE
    finally:
        os.close(file)
