"""Which of several processes this is, and what they agree on."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_only

from caldpo.errors import CaldpoError

T = TypeVar("T")


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


def any_rank_says(number: int | None) -> int | None:
    """The largest number that any rank says, None where all say nothing: the same answer on all, which all have to ask.

    Settled between the hosts, so that nobody waits for a GPU.
    """
    if not _several():
        return number
    said = torch.tensor([number or 0])
    dist.all_reduce(said, dist.ReduceOp.MAX, group=_host_group(dist.group.WORLD))
    return int(said.item()) or None


@functools.lru_cache(maxsize=1)
def _host_group(world: object) -> dist.ProcessGroup | None:
    """Of all ranks, for values in main memory; None where ``world``, the group that all belong to, is one already."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def gathered(value: Any) -> list[Any]:
    """What each rank has, on all of them, which all have to ask: plain values, few and seldom."""
    if not _several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def largest_of_all(first: float, second: float) -> tuple[float, float]:
    """Each value as it is on the rank where it is largest (NaN counts as such), on all ranks, which all have to ask."""

    def size(value: float) -> float:
        return math.inf if math.isnan(value) else value

    firsts, seconds = zip(*gathered((first, second)), strict=True)
    return max(firsts, key=size), max(seconds, key=size)


def share_evenly(items: Iterable[T]) -> Iterator[T]:
    """This rank's share of what all ranks have alike, as many on each: where they run out, the last one again."""
    ranks, rank, left = (dist.get_world_size(), dist.get_rank(), []) if _several() else (1, 0, [])
    for item in items:
        left.append(item)
        if len(left) == ranks:
            yield left[rank]
            left = []
    if left:
        yield left[min(rank, len(left) - 1)]


def settled(act: Callable[[], T]) -> list[T]:
    """What ``act`` gives on each rank, on all of them, which all have to call: they fail together or not at all.

    Raises:
        OSError: it failed on a rank, for this reason.
        CaldpoError: it raised one on a rank.
    """
    try:
        mine: tuple[Any, CaldpoError | str | None] = act(), None
    except CaldpoError as error:
        mine = None, error
    except (OSError, RuntimeError) as error:
        mine = None, getattr(error, "strerror", None) or str(error) or type(error).__name__
    found = gathered(mine)
    for rank, (_, failure) in enumerate(found):
        if isinstance(failure, CaldpoError):
            raise failure
        if failure is not None:
            raise OSError(f"{failure} (rank {rank})")
    return [value for value, _ in found]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
