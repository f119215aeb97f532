"""Whether an error says that memory ran out."""

from __future__ import annotations

import torch

# How PyTorch and the libraries below it say so, where they raise no type of their own for it.
_SAYINGS = ("can't allocate memory", "cannot allocate memory", "out of memory", "alloc_failed", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in _SAYINGS)
