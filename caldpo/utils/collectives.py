"""Collective operations between the ranks of a run; with one process, plain ones."""

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
    """Tell whether this is rank 0, which writes files and prints; known before a Trainer is built."""
    return getattr(rank_zero_only, "rank", 0) == 0


def true_on_any_rank(flags: list[bool]) -> list[bool]:
    """Reduce flags, as many on every rank, by OR over all ranks; a collective call."""
    return [any(of_ranks) for of_ranks in zip(*all_gather(flags), strict=True)]


def fresh_seed() -> int:
    """Draw a random seed, whatever the run's, the same on all ranks; a collective call."""
    return int(all_gather(random.SystemRandom().getrandbits(32))[0])


def max_over_ranks(number: int | None) -> int | None:
    """Reduce to the largest number over all ranks, None where all have none; a collective call.

    Decided between the hosts, so that no rank waits for a GPU.
    """
    if not _several():
        return number
    largest = torch.tensor([number or 0])
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_host_group(dist.group.WORLD))
    return int(largest.item()) or None


@functools.lru_cache(maxsize=1)
def _host_group(world: object) -> dist.ProcessGroup | None:
    """Make a gloo group of all ranks, for values in main memory; None where ``world`` is one already."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def all_gather(value: Any) -> list[Any]:
    """Gather a plain value from every rank on every rank; a collective call, for few values and seldom."""
    if not _several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def largest_over_ranks(first: float, second: float) -> tuple[float, float]:
    """Reduce each value to the one of largest size over all ranks, NaN being the largest; a collective call."""

    def size(value: float) -> float:
        return math.inf if math.isnan(value) else value

    firsts, seconds = zip(*all_gather((first, second)), strict=True)
    return max(firsts, key=size), max(seconds, key=size)


def shard_items(items: Iterable[T]) -> Iterator[T]:
    """Shard items across ranks, as many on each, padding with the last item."""
    ranks, rank, group = (dist.get_world_size(), dist.get_rank(), []) if _several() else (1, 0, [])
    for item in items:
        group.append(item)
        if len(group) == ranks:
            yield group[rank]
            group = []
    if group:
        yield group[min(rank, len(group) - 1)]


def call_on_all_ranks(act: Callable[[], T]) -> list[T]:
    """Call ``act`` on every rank and gather the results; all ranks fail together or none does.

    Raises:
        OSError: it failed on a rank, for this reason.
        CaldpoError: it raised one on a rank.
    """
    try:
        result: tuple[Any, CaldpoError | str | None] = act(), None
    except CaldpoError as error:
        result = None, error
    except (OSError, RuntimeError) as error:
        result = None, getattr(error, "strerror", None) or str(error) or type(error).__name__
    results = all_gather(result)
    for rank, (_, failure) in enumerate(results):
        if isinstance(failure, CaldpoError):
            raise failure
        if failure is not None:
            raise OSError(f"{failure} (rank {rank})")
    return [value for value, _ in results]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
