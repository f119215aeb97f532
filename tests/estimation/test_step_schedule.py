"""Steps and tokens, against batches that the run's own parts put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caldpo.data.batching import StepPlan
from caldpo.data.collate import Layout, collate
from caldpo.estimation.run_flops import computed_tokens
from caldpo.estimation.step_schedule import StepSchedule, repeated_lengths, step_schedule
from tests.helpers.tiny import tiny_pairs

PAIRS = tiny_pairs(23)
LENGTHS = np.array([[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in PAIRS])


def plan(pairs: int = 23, **changes: Any) -> StepPlan:
    """Steps of 12 pairs on two ranks."""
    settings: dict[str, Any] = {
        "micro_batch_size": 3,
        "max_tokens_per_micro_batch": None,
        "layout": "padded",
        "accumulation": 2,
        "world_size": 2,
        "seed": 5,
        "drop_last": False,
        "max_epochs": 1,
        "max_steps": None,
    }
    lengths = repeated_lengths(LENGTHS, pairs)
    settings |= changes
    layout, max_tokens = settings.pop("layout"), settings.pop("max_tokens_per_micro_batch")
    return StepPlan(len(lengths), **settings).for_lengths(lengths, layout, max_tokens)


def planned(pairs: int = 23, **changes: Any) -> StepSchedule:
    made = plan(pairs, **changes)
    return step_schedule(LENGTHS, made, changes.get("layout", "padded"), exact_steps="max_steps" in changes)


@pytest.mark.parametrize("max_tokens_per_micro_batch", [None, 60, 200])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_tokens_are_those_of_the_real_batches(layout: Layout, max_tokens_per_micro_batch: int | None) -> None:
    keys = {"layout": layout, "max_tokens_per_micro_batch": max_tokens_per_micro_batch}
    batches = [
        (collate([PAIRS[row] for row in micro.rows], 0, layout=layout), micro)
        for rank in (0, 1)
        for micro in plan(**keys).sampler(rank)
    ]
    result = planned(**keys)
    assert result.micro_batches == len(batches) / 2
    assert result.largest_tokens <= (max_tokens_per_micro_batch or 10**9)
    assert result.computed_tokens == sum(batch.input_ids.numel() for batch, _ in batches)
    assert result.largest_tokens == max(batch.input_ids.numel() for batch, _ in batches)
    assert result.largest in [micro.rows for _, micro in batches]
    assert result.prompt_tokens == LENGTHS[:, 0].sum()  # filler that evens out ranks is no token of the data
    assert result.response_tokens == LENGTHS[:, 1:].sum()
    assert result.exact
    assert result.exact_steps


def test_micro_batches_above_a_limit_recompute() -> None:
    keys: dict[str, Any] = {"layout": "packed", "max_tokens_per_micro_batch": 40}
    tokens = [computed_tokens(LENGTHS[list(m.rows)], "packed") for rank in (0, 1) for m in plan(**keys).sampler(rank)]
    limit = sorted(tokens)[len(tokens) // 2]
    result = step_schedule(LENGTHS, plan(**keys), "packed", exact_steps=True, recompute_above=limit)
    assert computed_tokens(LENGTHS[list(result.largest)], "packed") == max(tokens) > limit
    assert computed_tokens(LENGTHS[list(result.largest_kept)], "packed") == limit
    assert result.recomputed[0] == sum(n for n in tokens if n > limit) / sum(tokens)
    assert 0 < result.recomputed[1] < 1
    everything_kept = planned(**keys)
    assert (everything_kept.largest_kept, everything_kept.recomputed) == ((), (0, 0))


def test_the_largest_micro_batch_of_all_epochs() -> None:
    def largest(epoch: int) -> int:
        samplers = [plan().sampler(rank) for rank in (0, 1)]
        for each in samplers:
            each.set_epoch(epoch)
        return max(computed_tokens(LENGTHS[list(micro.rows)], "padded") for each in samplers for micro in each)

    assert len({largest(epoch) for epoch in range(4)}) > 1
    assert planned(max_epochs=4).largest_tokens == max(largest(epoch) for epoch in range(4))


@pytest.mark.parametrize(
    ("changes", "per_epoch", "steps", "epochs"),
    [
        ({}, 2, 2, 1),  # 12 pairs a step, 11 in the last
        ({"drop_last": True}, 1, 1, 1),
        ({"max_epochs": 3}, 2, 6, 3),
        ({"max_steps": 3, "max_epochs": 9}, 2, 3, 1.5),
        ({"accumulation": 1, "world_size": 1}, 8, 8, 1),
        ({"accumulation": 4, "world_size": 1}, 2, 2, 1),
    ],
)
def test_steps(changes: dict[str, Any], per_epoch: int, steps: int, epochs: float) -> None:
    result = planned(**changes)
    assert (result.steps_per_epoch, result.steps, result.epochs) == (per_epoch, steps, epochs)


def test_a_sample_stands_in_for_a_larger_split() -> None:
    """Ten copies of the sample are ten times its tokens, and more batches show a larger largest one."""
    small, large = planned(accumulation=1, world_size=1), planned(pairs=230, accumulation=1, world_size=1)
    assert large.prompt_tokens == 10 * small.prompt_tokens
    assert large.response_tokens == 10 * small.response_tokens
    assert large.steps == 77
    assert large.largest_tokens >= small.largest_tokens
    assert not large.exact
    assert not large.exact_steps
    assert planned(pairs=230, max_steps=5).exact_steps
