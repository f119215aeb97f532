"""Which of several processes this is, and what they agree on."""

from __future__ import annotations

import random

import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_only


def is_first_rank() -> bool:
    """Whether this process is the one that writes files and speaks: known before a Trainer is built."""
    return getattr(rank_zero_only, "rank", 0) == 0


def true_on_any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """Each flag as it is on any rank: the same answer on all of them, which all have to ask.

    Args:
        flags: as many on every rank.
        device: where this rank computes.
    """
    if not _several():
        return flags
    both = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return [bool(flag) for flag in both.tolist()]


def fresh_seed(device: torch.device) -> int:
    """Another number at every call, whatever the run's seed, and the same on all ranks, which all have to ask."""
    drawn = random.SystemRandom().getrandbits(32)
    if not _several():
        return drawn
    shared = torch.tensor([drawn], dtype=torch.int64, device=device)
    dist.broadcast(shared, src=0)
    return int(shared.item())


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
