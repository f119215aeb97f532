"""Which of several processes this is."""

from __future__ import annotations

from pytorch_lightning.utilities import rank_zero_only


def is_first_rank() -> bool:
    """Whether this process is the one that writes files and speaks: known before a Trainer is built."""
    return getattr(rank_zero_only, "rank", 0) == 0
