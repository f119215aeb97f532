"""Steps and tokens of a run, from the lengths of some of its pairs and the run's own plan of its steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caldpo.data.batching import StepPlan
from caldpo.data.collate import Layout
from caldpo.estimation.run_flops import work_of

_MOST_PAIRS = 1_000_000  # looked at in search of the largest micro-batch: some epochs of a usual data set


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a run goes through. Tokens are those of an epoch, over all devices.

    Args:
        pairs: of the training split.
        micro_batches: of one device in an epoch.
        steps_per_epoch, steps: optimiser steps.
        prompt_tokens: with each prompt counted once a pair.
        response_tokens: chosen and rejected.
        computed_tokens: positions that the model runs over: prompts as often as the layout repeats them, padding.
        attended: couples of a query and a key that attention computes, in one layer and head.
        largest: places in the sample of the pairs that make up the largest micro-batch.
        largest_tokens: computed tokens of that.
        exact: the sample is the whole split.
        exact_steps: the number of steps does not hang on the number of pairs, or that is exact.
    """

    pairs: int
    micro_batches: int
    steps_per_epoch: int
    steps: int
    prompt_tokens: int
    response_tokens: int
    computed_tokens: int
    attended: int
    largest: tuple[int, ...]
    largest_tokens: int
    exact: bool
    exact_steps: bool

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.steps / self.steps_per_epoch


def schedule_of(lengths: np.ndarray, plan: StepPlan, layout: Layout, *, exact_steps: bool) -> Schedule:
    """Go through the run's micro-batches by their lengths.

    A split that is larger than its sample is stood in for by the sample over and over, so that the largest
    micro-batch is the largest of as many as the run will have.

    Args:
        lengths: tokens of prompt, chosen and rejected of the sampled pairs, shape ``(sampled, 3)``.
        plan: of the run, over the whole split.
        layout: of the batches.
        exact_steps: the number of steps is known, though the number of pairs may not be.
    """
    computed = packed_tokens if layout == "packed" else padded_tokens
    per_epoch = np.zeros(4, dtype=np.int64)  # prompt, response, computed, attended
    largest: tuple[int, ...] = ()
    most = 0
    samplers = [plan.sampler(rank) for rank in range(plan.world_size)]
    for epoch in range(max(1, min(plan.epochs, _MOST_PAIRS // plan.pairs))):
        for sampler in samplers:
            sampler.set_epoch(epoch)
            for batch in sampler:
                places = [row % len(lengths) for row in batch.rows]
                of_batch = lengths[places]
                size = computed(of_batch)
                if size > most:
                    largest, most = tuple(places), size
                if epoch == 0:
                    real = of_batch[np.array(batch.weights) > 0]
                    per_epoch += (real[:, 0].sum(), real[:, 1:].sum(), size, int(work_of(of_batch, layout).attended))
    exact = plan.pairs == len(lengths)
    return Schedule(
        pairs=plan.pairs,
        micro_batches=plan.steps_per_epoch * plan.accumulation,
        steps_per_epoch=plan.steps_per_epoch,
        steps=plan.steps,
        prompt_tokens=int(per_epoch[0]),
        response_tokens=int(per_epoch[1]),
        computed_tokens=int(per_epoch[2]),
        attended=int(per_epoch[3]),
        largest=largest,
        largest_tokens=most,
        exact=exact,
        exact_steps=exact or exact_steps,
    )


def padded_tokens(lengths: np.ndarray) -> int:
    """Positions of a padded micro-batch: every response behind its own prompt, as long as the longest."""
    return 2 * len(lengths) * int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max())


def packed_tokens(lengths: np.ndarray) -> int:
    """Positions of a packed micro-batch: each prompt once, and no padding."""
    return int(lengths.sum())


def whole_split(lengths: np.ndarray, pairs: int) -> np.ndarray:
    """Lengths of ``pairs`` pairs of which some are known: those over and over."""
    return lengths[np.arange(pairs) % len(lengths)]
