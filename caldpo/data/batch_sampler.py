"""Which pairs make up which batch: an epoch cut into optimiser steps, a step into micro-batches for the ranks.

The pairs of an optimiser step depend on the seed, the epoch and the step's size alone, not on how the step is
sharded over ranks and micro-batches: 2 devices x 4 pairs x accumulation 2 see what 1 device x 16 pairs sees, and so
does any budget of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from caldpo.data.microbatching import ByCount, Dealing
from caldpo.errors import CaldpoError


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass of one rank.

    Args:
        rows: rows of the split.
        weights: 1 for each real pair, 0 for filler.
        step_pairs: real pairs of the whole optimiser step, over ranks and accumulation.
    """

    rows: tuple[int, ...]
    weights: tuple[float, ...]
    step_pairs: int


class StepBatchSampler(Sampler[MicroBatch]):
    """Yields one rank's micro-batches of an epoch.

    Each optimiser step but the last of an epoch has ``step_size`` pairs, the last what remains; every one has
    ``accumulation`` micro-batches a rank, so that whoever counts micro-batches counts steps. One left without a pair
    gets a filler pair of weight 0, so that no rank waits forever.

    Args:
        pairs: how many pairs the split has.
        micro_batch_size: pairs in a full micro-batch.
        accumulation: micro-batches of one rank in an optimiser step.
        world_size: ranks that share each step.
        rank: the rank this sampler is for.
        seed: with the epoch, determines the order; None keeps the split's own order.
        drop_last: leave out the pairs of the last, partial step (see :attr:`dropped`).
        dealing: divides a step's pairs into micro-batches; None: by count, in their order.
        step_size: pairs of a full optimiser step; None: those of its micro-batches if all are full.

    Raises:
        CaldpoError: ``drop_last`` with fewer pairs than one step has.
    """

    def __init__(
        self,
        pairs: int,
        micro_batch_size: int,
        *,
        accumulation: int = 1,
        world_size: int = 1,
        rank: int = 0,
        seed: int | None = None,
        drop_last: bool = False,
        dealing: Dealing | None = None,
        step_size: int | None = None,
    ) -> None:
        self.pairs, self.micro_batch_size, self.accumulation = pairs, micro_batch_size, accumulation
        self.dealing = ByCount() if dealing is None else dealing
        self.step_size = micro_batch_size * accumulation * world_size if step_size is None else step_size
        self.world_size, self.rank, self.seed = world_size, rank, seed
        self.dropped = pairs % self.step_size if drop_last else 0  # pairs left out of each epoch
        self.epoch = 0
        self.start = 0  # micro-batches to skip: where a resumed epoch goes on
        if drop_last and self.dropped == pairs:
            raise CaldpoError(
                f"leaves nothing: {pairs} pairs are fewer than the {self.step_size} of one optimiser step",
                key="data.drop_last",
                value=drop_last,
                remedy="set data.drop_last=false, or lower data.micro_batch_size or the accumulation",
            )

    def set_epoch(self, epoch: int) -> None:
        """Move to another epoch's order, from its beginning; naming the current epoch changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def order(self, epoch: int | None = None) -> list[int]:
        """All rows of the split in the order of an epoch, the current one by default."""
        epoch = self.epoch if epoch is None else epoch
        if self.seed is None:
            return list(range(self.pairs))
        return np.random.default_rng([self.seed, epoch]).permutation(self.pairs).tolist()

    def steps(self, epoch: int) -> Iterator[list[int]]:
        """The rows of each optimiser step of an epoch, over all ranks."""
        order = self.order(epoch)
        kept = self.pairs - self.dropped
        return (order[start : min(start + self.step_size, kept)] for start in range(0, kept, self.step_size))

    def __len__(self) -> int:
        """Micro-batches of an epoch, for each rank."""
        return -(-(self.pairs - self.dropped) // self.step_size) * self.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        first, skipped = divmod(self.start, self.accumulation)
        for rows in islice(self.steps(self.epoch), first, None):
            dealt = self.dealing.deal(rows, self.accumulation * self.world_size)
            filler = [batch for batch in dealt if batch][-1][-1:]  # one of the shortest, where lengths are known
            for mine in dealt[self.rank :: self.world_size][skipped:]:
                weights = (1.0,) * len(mine) or (0.0,)
                yield MicroBatch(rows=tuple(mine or filler), weights=weights, step_pairs=len(rows))
            skipped = 0

    def state(self, epoch: int, handed_out: int) -> dict[str, Any]:
        """What :meth:`load_state` needs to go on after ``handed_out`` micro-batches of ``epoch``."""
        return {"epoch": epoch, "micro_batches": handed_out, "of": self._identity()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken.

        Raises:
            CaldpoError: the data, the seed or the step's division differ, so that pairs would be seen twice
                or never.
        """
        then, now = state["of"], self._identity()
        changed = [f"{name} was {then[name]}, is {now[name]}" for name in now if then[name] != now[name]]
        if changed:
            raise CaldpoError(
                f"the checkpoint's place in the data means nothing here: {', '.join(changed)}",
                remedy="resume with the data and batch settings the run began with",
            )
        self.epoch, self.start = state["epoch"], state["micro_batches"]

    def _identity(self) -> dict[str, int | None]:
        names = ("pairs", "micro_batch_size", "step_size", "accumulation", "world_size", "seed", "dropped")
        return {name: getattr(self, name) for name in names}
