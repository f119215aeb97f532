"""The optimiser steps of a run: how many pairs each has, how many there are, and into what they are cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from caldpo.data.batch_sampler import StepBatchSampler
from caldpo.data.collate import Layout
from caldpo.data.microbatching import ByCount, ByTokens, Dealing


@dataclass(frozen=True)
class StepPlan:
    """What all ranks of a run agree on.

    Args:
        pairs: of the split.
        micro_batch_size: pairs of a micro-batch where they are dealt by count.
        step_size: pairs of a full optimiser step, over all devices.
        accumulation: micro-batches of one device in each step.
        steps: optimiser steps of the run.
        world_size: devices.
        dealing: divides a step's pairs into micro-batches.
        seed, drop_last: see :class:`StepBatchSampler`.
    """

    pairs: int
    micro_batch_size: int
    step_size: int
    accumulation: int
    steps: int
    world_size: int
    dealing: Dealing
    seed: int | None
    drop_last: bool

    def sampler(self, rank: int) -> StepBatchSampler:
        """One rank's sampler."""
        return StepBatchSampler(
            self.pairs,
            self.micro_batch_size,
            step_size=self.step_size,
            accumulation=self.accumulation,
            world_size=self.world_size,
            rank=rank,
            seed=self.seed,
            drop_last=self.drop_last,
            dealing=self.dealing,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch, the last and smaller one included where it is not dropped."""
        return steps_per_epoch(self.pairs, self.step_size, self.drop_last)

    @property
    def epochs(self) -> int:
        """Epochs that the run begins."""
        return -(-self.steps // self.steps_per_epoch)

    @property
    def pairs_seen(self) -> int:
        """Training pairs of all steps, repeats counted."""
        kept = self.pairs - self.sampler(0).dropped
        epochs, rest = divmod(self.steps, self.steps_per_epoch)
        return epochs * kept + min(rest * self.step_size, kept)


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
    """Settle how the steps of a run are divided.

    An optimiser step has ``micro_batch_size x accumulation x world_size`` pairs either way. With
    ``max_tokens_per_micro_batch`` it is cut anew, into as many micro-batches as the step needs that needs most: the
    same number in every step, so that accumulation is a constant of the run.

    Args:
        lengths: tokens of prompt, chosen and rejected response of each pair, ``(pairs, 3)``.
        micro_batch_size: pairs of a micro-batch where there is no budget of tokens.
        max_tokens_per_micro_batch: most tokens of a micro-batch, padding included; None deals by count.
        layout: of the batches; in padded ones pairs of like length are brought together.
        accumulation: micro-batches of one device in an optimiser step, where they are dealt by count.
        world_size: devices.
        seed: with the epoch, determines the order; None keeps the split's own order.
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
        dealing=ByCount(longest if layout == "padded" else None),
        seed=seed,
        drop_last=drop_last,
    )
    steps = _all_steps(plan)
    if max_tokens_per_micro_batch is None:
        return plan
    dealing = ByTokens(max_tokens_per_micro_batch, lengths.sum(axis=1), longest, layout)
    needed = max(map(dealing.needed, steps))
    return replace(plan, dealing=dealing, accumulation=-(-needed // world_size))


def steps_per_epoch(pairs: int, step_size: int, drop_last: bool) -> int:
    """Optimiser steps of an epoch; with ``drop_last`` those alone that are full."""
    return pairs // step_size if drop_last else -(-pairs // step_size)


def _all_steps(plan: StepPlan) -> Iterator[list[int]]:
    """The rows of every step of the run; without a seed all epochs are the same."""
    sampler = plan.sampler(0)  # refuses a division that leaves no step
    epochs = range(1 if plan.seed is None else plan.epochs)
    return islice((rows for epoch in epochs for rows in sampler.steps(epoch)), plan.steps)
