"""Cut epochs into optimiser steps, and steps into micro-batches for the ranks.

The pairs of an optimiser step depend on the seed, the epoch and the step size alone, not on how ranks and micro-batches
share the step: 2 devices x 4 pairs x accumulation 2 see the pairs of 1 device x 16 pairs, whatever the token budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from caldpo.data.collate import Layout
from caldpo.data.microbatching import ByCount, ByTokens, MicroBatch, MicroBatching
from caldpo.errors import CaldpoError
from caldpo.utils.text_format import counted


class StepBatchSampler(Sampler[MicroBatch]):
    """Yields one rank's micro-batches of an epoch.

    Each optimiser step but the last of an epoch has ``step_size`` pairs, the last what remains. Every step has
    ``accumulation`` micro-batches per rank, so that counting micro-batches counts steps; a micro-batch left without a
    pair gets a filler pair of weight 0, so that no rank waits forever.

    Args:
        pairs: pairs of the split.
        micro_batch_size: pairs of a full micro-batch.
        accumulation: micro-batches of one rank in an optimiser step.
        world_size: ranks that share each step.
        rank: the rank this sampler is for.
        seed: with the epoch, determines the order; None keeps the order of the split.
        drop_last: leave out the pairs of the last, partial step (see :attr:`dropped`).
        micro_batching: divides a step into micro-batches; None: by count, in order.
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
        micro_batching: MicroBatching | None = None,
        step_size: int | None = None,
    ) -> None:
        self.pairs, self.micro_batch_size, self.accumulation = pairs, micro_batch_size, accumulation
        self.micro_batching = ByCount() if micro_batching is None else micro_batching
        self.step_size = micro_batch_size * accumulation * world_size if step_size is None else step_size
        self.world_size, self.rank, self.seed = world_size, rank, seed
        self.dropped = pairs % self.step_size if drop_last else 0  # pairs left out of each epoch
        self.epoch = 0
        self.start = 0  # micro-batches to skip: where a resumed epoch goes on
        if drop_last and self.dropped == pairs:
            raise CaldpoError(
                f"leaves nothing: {counted(pairs, 'pair')}, fewer than the {self.step_size} of one optimiser step",
                key="data.drop_last",
                value=drop_last,
                remedy="set data.drop_last=false, or lower data.micro_batch_size or the accumulation",
            )

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of another epoch; naming the current epoch changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def order(self, epoch: int | None = None) -> list[int]:
        """Return all rows of the split in the order of an epoch, the current one by default."""
        epoch = self.epoch if epoch is None else epoch
        if self.seed is None:
            return list(range(self.pairs))
        return np.random.default_rng([self.seed, epoch]).permutation(self.pairs).tolist()

    def steps(self, epoch: int) -> Iterator[list[int]]:
        """Yield the rows of each optimiser step of an epoch, over all ranks."""
        order = self.order(epoch)
        end = self.pairs - self.dropped
        return (order[start : min(start + self.step_size, end)] for start in range(0, end, self.step_size))

    def __len__(self) -> int:
        """Count the micro-batches of an epoch, for each rank."""
        return -(-(self.pairs - self.dropped) // self.step_size) * self.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        first, skipped = divmod(self.start, self.accumulation)
        for rows in islice(self.steps(self.epoch), first, None):
            batches = self.micro_batching.split(rows, self.accumulation * self.world_size)
            filler = [batch for batch in batches if batch][-1][-1:]  # one of the shortest, where lengths are known
            for mine in batches[self.rank :: self.world_size][skipped:]:
                weights = (1.0,) * len(mine) or (0.0,)
                yield MicroBatch(rows=tuple(mine or filler), weights=weights, step_pairs=len(rows))
            skipped = 0

    def state(self, epoch: int, consumed: int) -> dict[str, Any]:
        """Return what :meth:`load_state` needs to go on after ``consumed`` micro-batches of ``epoch``."""
        return {"epoch": epoch, "micro_batches": consumed, "of": self._identity()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken.

        Raises:
            CaldpoError: the data, the seed or the sizes of a step differ, so that pairs would be seen twice or never.
        """
        then, now = state["of"], self._identity()
        changed = [f"{name} was {then[name]}, is {now[name]}" for name in now if then[name] != now[name]]
        if changed:
            raise CaldpoError(
                f"the checkpoint's position in the data does not apply here: {', '.join(changed)}",
                remedy="resume with the data and batch settings the run began with",
            )
        self.epoch, self.start = state["epoch"], state["micro_batches"]

    def _identity(self) -> dict[str, int | None]:
        names = ("pairs", "micro_batch_size", "step_size", "accumulation", "world_size", "seed", "dropped")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class StepPlan:
    """The optimiser steps of a run, the same on all ranks.

    Args:
        pairs: of the split.
        micro_batch_size: pairs of a micro-batch where they are divided by count.
        step_size: pairs of a full optimiser step, over all devices.
        accumulation: micro-batches of one device in each step.
        steps: optimiser steps of the run.
        world_size: devices.
        micro_batching: divides a step into micro-batches.
        seed, drop_last: see :class:`StepBatchSampler`.
    """

    pairs: int
    micro_batch_size: int
    step_size: int
    accumulation: int
    steps: int
    world_size: int
    micro_batching: MicroBatching
    seed: int | None
    drop_last: bool

    def sampler(self, rank: int) -> StepBatchSampler:
        """Build one rank's sampler."""
        return StepBatchSampler(
            self.pairs,
            self.micro_batch_size,
            step_size=self.step_size,
            accumulation=self.accumulation,
            world_size=self.world_size,
            rank=rank,
            seed=self.seed,
            drop_last=self.drop_last,
            micro_batching=self.micro_batching,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch, a smaller last one included where it is not dropped."""
        return steps_per_epoch(self.pairs, self.step_size, self.drop_last)

    @property
    def epochs(self) -> int:
        """Epochs that the run begins."""
        return -(-self.steps // self.steps_per_epoch)

    @property
    def pairs_seen(self) -> int:
        """Training pairs of all steps, repeats counted."""
        per_epoch = self.pairs - self.sampler(0).dropped
        epochs, rest = divmod(self.steps, self.steps_per_epoch)
        return epochs * per_epoch + min(rest * self.step_size, per_epoch)


def plan_steps(
    lengths: np.ndarray,
    *,
    micro_batch_size: int,
    max_tokens_per_micro_batch: int | None,
    layout: Layout,
    accumulation: int,
    world_size: int,
    seed: int | None,
    drop_last: bool,
    max_epochs: int,
    max_steps: int | None,
) -> StepPlan:
    """Plan the optimiser steps of a run, each of ``micro_batch_size x accumulation x world_size`` pairs.

    With ``max_tokens_per_micro_batch`` a step is cut into as many micro-batches as the most demanding step needs: the
    same number in every step, so that accumulation is a constant of the run.

    Args:
        lengths: tokens of prompt, chosen and rejected response of each pair, ``(pairs, 3)``.
        micro_batch_size: pairs of a micro-batch where there is no token budget.
        max_tokens_per_micro_batch: most tokens of a micro-batch, padding included; None divides by count.
        layout: of the batches; padded ones group pairs of similar length.
        accumulation: micro-batches of one device in an optimiser step, where they are divided by count.
        world_size: devices.
        seed: with the epoch, determines the order; None keeps the order of the split.
        drop_last: leave out the last step of an epoch where it has fewer pairs than the others.
        max_epochs: passes over the pairs, where there is no ``max_steps``.
        max_steps: optimiser steps.

    Raises:
        CaldpoError: ``drop_last`` with fewer pairs than one step has.
    """
    longest = lengths[:, 0] + lengths[:, 1:].max(axis=1)
    step_size = micro_batch_size * accumulation * world_size
    plan = StepPlan(
        pairs=len(lengths),
        micro_batch_size=micro_batch_size,
        step_size=step_size,
        accumulation=accumulation,
        steps=max_epochs * steps_per_epoch(len(lengths), step_size, drop_last) if max_steps is None else max_steps,
        world_size=world_size,
        micro_batching=ByCount(longest if layout == "padded" else None),
        seed=seed,
        drop_last=drop_last,
    )
    steps = _all_steps(plan)
    if max_tokens_per_micro_batch is None:
        return plan
    by_tokens = ByTokens(max_tokens_per_micro_batch, lengths.sum(axis=1), longest, layout)
    needed = max(map(by_tokens.needed, steps))
    return replace(plan, micro_batching=by_tokens, accumulation=-(-needed // world_size))


def steps_per_epoch(pairs: int, step_size: int, drop_last: bool) -> int:
    """Count the optimiser steps of an epoch; with ``drop_last`` only full ones."""
    return pairs // step_size if drop_last else -(-pairs // step_size)


def _all_steps(plan: StepPlan) -> Iterator[list[int]]:
    """Yield the rows of every step of the run; without a seed all epochs are the same."""
    sampler = plan.sampler(0)  # refuses a plan without a step
    epochs = range(1 if plan.seed is None else plan.epochs)
    return islice((rows for epoch in epochs for rows in sampler.steps(epoch)), plan.steps)
