"""Which pairs make up which batch: an epoch cut into optimiser steps, a step into equal shares for the ranks.

The pairs of an optimiser step depend on the seed, the epoch and the step's size alone, not on how the step is
divided over ranks and accumulation: 2 devices x 4 pairs x accumulation 2 see what 1 device x 16 pairs sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

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

    Each optimiser step but the last has ``pairs_per_batch x accumulation x world_size`` pairs; the last has
    what remains, dealt evenly over as few micro-batches as hold it. All ranks get the same number of
    micro-batches: a rank left without a pair gets a filler pair of weight 0, so that no rank waits forever.

    Args:
        pairs: how many pairs the split has.
        pairs_per_batch: pairs in a full micro-batch.
        accumulation: micro-batches of one rank in a full optimiser step.
        world_size: ranks that share each step.
        rank: the rank this sampler is for.
        seed: with the epoch, determines the order; None keeps the split's own order.
        drop_last: leave out the pairs of the last, partial step (see :attr:`dropped`).

    Raises:
        CaldpoError: ``drop_last`` with fewer pairs than one step has.
    """

    def __init__(
        self,
        pairs: int,
        pairs_per_batch: int,
        *,
        accumulation: int = 1,
        world_size: int = 1,
        rank: int = 0,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.pairs, self.pairs_per_batch, self.accumulation = pairs, pairs_per_batch, accumulation
        self.world_size, self.rank, self.seed = world_size, rank, seed
        self.step_size = pairs_per_batch * accumulation * world_size
        self.dropped = pairs % self.step_size if drop_last else 0  # pairs left out of each epoch
        self.epoch = 0
        self.start = 0  # micro-batches to skip: where a resumed epoch goes on
        if drop_last and self.dropped == pairs:
            raise CaldpoError(
                f"leaves nothing: {pairs} pairs are fewer than the {self.step_size} of one optimiser step",
                key="data.drop_last",
                value=drop_last,
                remedy="set data.drop_last=false, or lower data.pairs_per_batch or the accumulation",
            )

    def set_epoch(self, epoch: int) -> None:
        """Move to another epoch's order, from its beginning; naming the current epoch changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def order(self) -> list[int]:
        """All rows of the split in the order of the current epoch."""
        if self.seed is None:
            return list(range(self.pairs))
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.pairs).tolist()

    def __len__(self) -> int:
        """Micro-batches of a whole epoch, for each rank."""
        full, rest = divmod(self.pairs - self.dropped, self.step_size)
        return full * self.accumulation + self._micro_batches(rest)

    def __iter__(self) -> Iterator[MicroBatch]:
        order = self.order()
        for place in range(self.start, len(self)):
            step, micro = divmod(place, self.accumulation)
            rows = order[step * self.step_size : (step + 1) * self.step_size]
            shares = self._micro_batches(len(rows)) * self.world_size
            share = micro * self.world_size + self.rank
            # Contiguous shares whose sizes differ by one at most.
            mine = rows[len(rows) * share // shares : len(rows) * (share + 1) // shares]
            yield MicroBatch(
                rows=tuple(mine or rows[:1]),
                weights=(1.0,) * len(mine) or (0.0,),
                step_pairs=len(rows),
            )

    def _micro_batches(self, rows: int) -> int:
        """Micro-batches a rank needs for a step of ``rows`` pairs."""
        return -(-rows // (self.pairs_per_batch * self.world_size))

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
        names = ("pairs", "pairs_per_batch", "accumulation", "world_size", "seed", "dropped")
        return {name: getattr(self, name) for name in names}
