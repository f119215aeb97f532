"""Recognise errors of exhausted memory."""

from __future__ import annotations

import torch

# How PyTorch and the libraries below it say so, where they raise no type of their own for it.
_MESSAGES = ("can't allocate memory", "cannot allocate memory", "out of memory", "alloc_failed", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MESSAGES)
