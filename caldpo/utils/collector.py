"""Spare the start of a command Python's garbage collector: half a million objects that it makes there last."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
from collections.abc import Iterator

_PLACES = 2  # where a command uses it: what its command line composes to, and what it runs with
_exemptions = itertools.count()


@contextlib.contextmanager
def exempt_from_collection() -> Iterator[None]:
    """Collect no cycles meanwhile, and exempt what is there at the end from all later collections, the last one too.

    Collections are a fifth of the time of the imports. Later commands in the same process, and those of a program that
    has torch already, exempt nothing: that would keep its garbage.
    """
    was_enabled, has_torch = gc.isenabled(), "torch" in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if not has_torch and next(_exemptions) < _PLACES:
            gc.freeze()  # before the collector is on again, which would begin with all of it
        if was_enabled:
            gc.enable()
