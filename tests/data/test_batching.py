"""An epoch in optimiser steps, micro-batches and ranks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldpo.data.batching import MicroBatch, StepBatchSampler, StepPlan
from tests.helpers.messages import refused


def real(batches: list[MicroBatch]) -> list[int]:
    """The rows that count, filler left out."""
    return [row for b in batches for row, weight in zip(b.rows, b.weights, strict=True) if weight]


def test_by_hand() -> None:
    """7 pairs in steps of 4 (2 a batch, 2 micro-batches), in order: the last step has 3, dealt 1 and 2."""
    batches = list(StepPlan(7, 2, accumulation=2).sampler())
    assert batches == [
        MicroBatch((0, 1), (1.0, 1.0), 4),
        MicroBatch((2, 3), (1.0, 1.0), 4),
        MicroBatch((4,), (1.0,), 3),
        MicroBatch((5, 6), (1.0, 1.0), 3),
    ]


def test_a_rank_without_a_pair_gets_filler_of_weight_0() -> None:
    ranks = [list(StepPlan(5, 2, world_size=2).sampler(rank)) for rank in (0, 1)]
    assert ranks[0] == [MicroBatch((0, 1), (1.0, 1.0), 4), MicroBatch((4,), (0.0,), 1)]
    assert ranks[1] == [MicroBatch((2, 3), (1.0, 1.0), 4), MicroBatch((4,), (1.0,), 1)]


@given(
    pairs=st.integers(1, 60),
    micro_batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    world_size=st.integers(1, 4),
    seed=st.none() | st.integers(0, 3),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
)
def test_nothing_is_lost_or_doubled_and_no_rank_waits(
    pairs: int,
    micro_batch_size: int,
    accumulation: int,
    world_size: int,
    seed: int | None,
    epoch: int,
    drop_last: bool,
) -> None:
    step_size = micro_batch_size * accumulation * world_size
    drop_last = drop_last and pairs >= step_size
    ranks = []
    for rank in range(world_size):
        sampler = StepPlan(
            pairs,
            micro_batch_size,
            accumulation=accumulation,
            world_size=world_size,
            seed=seed,
            drop_last=drop_last,
        ).sampler(rank)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    assert len({len(batches) for batches in ranks}) == 1
    seen = [row for batches in ranks for row in real(batches)]
    assert max(Counter(seen).values()) == 1
    assert len(seen) == pairs - (pairs % step_size if drop_last else 0)
    assert sampler.plan.dropped == pairs - len(seen)
    for begin in range(0, len(ranks[0]), accumulation):
        step = [b for batches in ranks for b in batches[begin : begin + accumulation]]
        assert {b.step_pairs for b in step} == {len(real(step))}  # every micro-batch knows its whole step
        assert all(1 <= len(b.rows) <= micro_batch_size for b in step)
        is_last = begin + accumulation >= len(ranks[0])
        assert is_last or len(real(step)) == step_size


@pytest.mark.parametrize("pairs", [64, 61, 50, 49])
def test_a_step_has_the_same_pairs_for_every_division_into_micro_batches(pairs: int) -> None:
    def steps(micro_batch_size: int, accumulation: int, world_size: int) -> list[set[int]]:
        ranks = [
            list(
                StepPlan(
                    pairs,
                    micro_batch_size,
                    accumulation=accumulation,
                    world_size=world_size,
                    seed=5,
                ).sampler(rank)
            )
            for rank in range(world_size)
        ]
        places = range(0, len(ranks[0]), accumulation)
        return [set(real([b for r in ranks for b in r[i : i + accumulation]])) for i in places]

    expected = steps(16, 1, 1)
    assert len(expected) == 4
    for division in [(4, 4, 1), (4, 2, 2), (1, 16, 1), (2, 2, 4), (1, 4, 4), (8, 1, 2)]:
        assert steps(*division) == expected


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = StepPlan(50, 4, seed=seed).sampler()
        for passed in range(epoch):  # how the epoch was reached must not matter
            sampler.set_epoch(passed)
            next(iter(sampler))
        sampler.set_epoch(epoch)
        return real(list(sampler))

    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert orders == {key: order(*key) for key in orders}
    assert len({tuple(o) for o in orders.values()}) == 9
    assert all(sorted(o) == list(range(50)) for o in orders.values())
    sampler = StepPlan(50, 4, seed=1).sampler()
    sampler.set_epoch(2)
    assert real(list(sampler)) == orders[1, 2]  # reached at once


def test_dropping_the_last_step_is_counted_and_refused_where_it_leaves_nothing() -> None:
    sampler = StepPlan(11, 2, accumulation=2, seed=0, drop_last=True).sampler()
    assert (sampler.plan.dropped, len(sampler)) == (3, 4)
    assert StepPlan(12, 2, accumulation=2, seed=0, drop_last=True).dropped == 0
    with refused("3 pairs", 4, key="data.drop_last", value=True, remedy="data.drop_last=false"):
        StepPlan(3, 2, accumulation=2, drop_last=True).sampler()


def resumable(**changes: Any) -> StepBatchSampler:
    settings = {"pairs": 29, "micro_batch_size": 2, "accumulation": 3, "seed": 4} | changes
    return StepPlan(settings.pop("pairs"), settings.pop("micro_batch_size"), **settings).sampler()


@pytest.mark.parametrize("handed_out", [0, 1, 5, 14, 15])
def test_a_state_goes_on_where_it_was_taken(handed_out: int) -> None:
    sampler = resumable()
    sampler.set_epoch(3)
    whole = list(sampler)
    assert len(whole) == 15
    other = resumable()
    other.load_state(sampler.state(3, handed_out))
    other.set_epoch(3)  # Lightning says so again
    assert list(other) == whole[handed_out:]
    assert len(other) == 15  # Lightning counts batches of the whole epoch
    other.set_epoch(4)
    assert len(list(other)) == 15


@pytest.mark.parametrize("change", [{"pairs": 30}, {"micro_batch_size": 3}, {"accumulation": 2}, {"seed": 5}])
def test_a_state_of_other_batch_sizes_is_refused(change: dict[str, int]) -> None:
    [(name, now)] = change.items()
    before = {"pairs": 29, "micro_batch_size": 2, "accumulation": 3, "seed": 4}
    with refused(f"{name} was {before[name]}, is {now}", remedy="resume"):
        resumable(**change).load_state(resumable().state(0, 5))
