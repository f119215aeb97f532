"""The C library's heap, from which PyTorch takes the tensors of a CPU."""

from __future__ import annotations

import ctypes
import os

MAPPED_BYTES = 16 * 2**20
"""Size from which blocks are mapped one by one. glibc's own limit grows to 32 MiB, and its heap does not reuse a freed
aligned block for one of the same size: it grew by the gradient of an output head with every micro-batch."""

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
_USERS_OWN = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def map_large_blocks() -> None:
    """Have large blocks mapped one by one, which go back to the system when freed; only glibc's heap, unless set."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in _USERS_OWN):
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
