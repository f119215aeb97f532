"""A run's optimiser steps: as many as counted by hand; under a budget of tokens the same, cut otherwise."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldpo.data.batching import ByCount, MicroBatch, StepPlan
from caldpo.estimation.run_flops import computed_tokens
from tests.helpers.messages import refused
from tests.helpers.train_ranks import Pairs

LAYOUTS = ("packed", "padded")
COST = {layout: partial(computed_tokens, layout=layout) for layout in LAYOUTS}


def lengths_of(pairs: int, seed: int = 0, longest: int = 80) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, longest, (pairs, 3))


def planned(lengths: np.ndarray, **changes: Any) -> StepPlan:
    settings: dict[str, Any] = {
        "micro_batch_size": 3,
        "max_tokens_per_micro_batch": None,
        "layout": "packed",
        "accumulation": 2,
        "world_size": 1,
        "seed": 5,
        "drop_last": False,
        "max_epochs": 1,
        "max_steps": None,
    }
    settings |= changes
    layout, max_tokens = settings.pop("layout"), settings.pop("max_tokens_per_micro_batch")
    return StepPlan(len(lengths), **settings).for_lengths(lengths, layout, max_tokens)


def real(batches: list[MicroBatch]) -> list[int]:
    return [row for b in batches for row, weight in zip(b.rows, b.weights, strict=True) if weight]


def steps_of(plan: StepPlan, epoch: int) -> list[list[list[MicroBatch]]]:
    """Micro-batches by step and rank."""
    ranks = []
    for rank in range(plan.world_size):
        sampler = plan.sampler(rank)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    size = plan.accumulation
    return [[r[i : i + size] for r in ranks] for i in range(0, len(ranks[0]), size)]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    pairs=st.integers(1, 40),
    budget=st.integers(1, 1500),
    micro_batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    world_size=st.integers(1, 3),
    seed=st.none() | st.integers(0, 3),
    epochs=st.integers(1, 3),
    drop_last=st.booleans(),
)
def test_the_same_steps_within_the_budget(
    layout: str,
    pairs: int,
    budget: int,
    micro_batch_size: int,
    accumulation: int,
    world_size: int,
    seed: int | None,
    epochs: int,
    drop_last: bool,
) -> None:
    lengths = lengths_of(pairs, seed=pairs)
    step_size = micro_batch_size * accumulation * world_size
    keys: dict[str, Any] = {
        "micro_batch_size": micro_batch_size,
        "accumulation": accumulation,
        "world_size": world_size,
        "seed": seed,
        "max_epochs": epochs,
        "drop_last": drop_last and pairs >= step_size,
        "layout": layout,
    }
    plain, plan = planned(lengths, **keys), planned(lengths, max_tokens_per_micro_batch=budget, **keys)
    assert (plain.accumulation, plain.steps) == (accumulation, plan.steps)
    for epoch in range(epochs):
        steps = steps_of(plan, epoch)
        assert len(steps) == plan.steps_per_epoch
        expected = [{row for rank in step for row in real(rank)} for step in steps_of(plain, epoch)]
        for step, rows in zip(steps, expected, strict=True):
            assert {len(rank) for rank in step} == {plan.accumulation}  # in every step of every epoch, on every rank
            seen = [row for rank in step for row in real(rank)]
            assert (set(seen), len(seen)) == (rows, len(rows))
            costs = [[COST[layout](lengths[list(b.rows)]) for b in rank] for rank in step]
            for rank, of_rank in zip(step, costs, strict=True):
                assert all(c <= budget or len(b.rows) == 1 for b, c in zip(rank, of_rank, strict=True))
                assert {b.step_pairs for b in rank} == {len(rows)}
            loads = [[c * any(b.weights) for b, c in zip(*both, strict=True)] for both in zip(step, costs, strict=True)]
            most = max(max(of_rank) for of_rank in loads)
            assert max(map(sum, loads)) - min(map(sum, loads)) <= most  # no rank waits for more than one micro-batch
    assert plan.pairs_seen == plain.pairs_seen == epochs * (pairs - plan.dropped)


def test_more_micro_batches_than_pairs_get_filler() -> None:
    """Steps of 4 pairs that need 4 micro-batches, and a last step of one pair: it gets the same, filled up."""
    lengths = np.array([[2, 8, 6]] * 4 + [[1, 1, 1]])
    plan = planned(lengths, micro_batch_size=4, accumulation=1, max_tokens_per_micro_batch=16, seed=None, world_size=2)
    assert (plan.step_size, plan.accumulation, plan.steps) == (8, 3, 1)
    assert plan.accumulation * plan.world_size == 6
    first, second = (list(plan.sampler(rank)) for rank in (0, 1))
    assert [b.rows for b in first] == [(0,), (2,), (4,)]
    assert [b.rows for b in second] == [(1,), (3,), (4,)]  # the shortest pair is the filler
    assert [b.weights for b in second] == [(1.0,), (1.0,), (0.0,)]
    assert {b.step_pairs for b in first + second} == {5}


def test_a_last_partial_step_has_as_many_micro_batches() -> None:
    """So that a count of micro-batches is a count of optimiser steps, across epochs."""
    plan = planned(lengths_of(13), micro_batch_size=2, accumulation=3, max_epochs=2)
    assert (plan.steps_per_epoch, plan.steps, plan.epochs) == (3, 6, 2)
    last = steps_of(plan, 0)[-1][0]
    assert [b.weights for b in last].count((0.0,)) == 2
    assert len(real(last)) == 1


@pytest.mark.parametrize(
    ("keys", "per_epoch", "steps", "epochs", "seen"),
    [
        ({}, 4, 4, 1, 20),  # 20 pairs in steps of 6: the last has 2
        ({"drop_last": True}, 3, 3, 1, 18),
        ({"max_epochs": 3}, 4, 12, 3, 60),
        ({"max_steps": 4}, 4, 4, 1, 20),  # the partial step is one of them
        ({"max_steps": 5}, 4, 5, 2, 26),
        ({"max_steps": 8, "max_epochs": 9}, 4, 8, 2, 40),
        ({"max_steps": 4, "drop_last": True}, 3, 4, 2, 24),
        ({"max_steps": 1}, 4, 1, 1, 6),
        ({"micro_batch_size": 50, "max_steps": 2}, 1, 2, 2, 40),
    ],
)
def test_steps_and_epochs(keys: dict[str, Any], per_epoch: int, steps: int, epochs: int, seen: int) -> None:
    plan = planned(lengths_of(20), **keys)
    assert (plan.steps_per_epoch, plan.steps, plan.epochs, plan.pairs_seen) == (per_epoch, steps, epochs, seen)


def test_micro_batches_are_as_many_as_the_steps_of_the_run_need() -> None:
    """One pair is as long as the budget: how many micro-batches its step needs decides, if the run comes to it."""
    lengths = np.array([[2, 2, 2]] * 12)
    lengths[7] = [10, 5, 5]
    keys: dict[str, Any] = {"micro_batch_size": 4, "accumulation": 1, "max_tokens_per_micro_batch": 24, "seed": None}
    assert planned(lengths, **keys).accumulation == 2  # step 1: 18 + 20 tokens; the others have 24
    assert planned(lengths, max_steps=1, **keys).accumulation == 1
    assert planned(lengths, max_steps=9, **keys).accumulation == 2
    # with a seed every epoch has steps of its own
    needs = [
        planned(lengths_of(40), max_tokens_per_micro_batch=300, max_epochs=epochs).accumulation
        for epochs in range(1, 30)
    ]
    assert needs == sorted(needs)
    assert needs[0] < needs[-1]


def test_grouping_by_length_saves_padding() -> None:
    """Counted over an epoch of lengths as skewed as those of real responses."""
    rng = np.random.default_rng(3)
    responses = rng.lognormal(4, 0.8, (300, 2)).astype(int) + 1
    lengths = np.concatenate([rng.integers(10, 60, (300, 1)), responses], axis=1)

    def computed(**keys: Any) -> int:
        plan = planned(lengths, micro_batch_size=4, accumulation=8, **keys)
        return sum(COST["padded"](lengths[list(b.rows)]) for b in plan.sampler(0))

    needed = int((2 * lengths[:, 0] + lengths[:, 1:].sum(axis=1)).sum())
    plain, grouped = computed(layout="packed"), computed(layout="padded")  # packed ones keep the order of the epoch
    assert plain > 1.9 * needed
    assert grouped < 1.5 * needed
    assert computed(layout="padded", max_tokens_per_micro_batch=2000) < 1.5 * needed


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("handed_out", [0, 1, 7, 11])
def test_a_state_goes_on_in_the_middle_of_an_epoch(layout: str, handed_out: int) -> None:
    plan = planned(lengths_of(29), max_tokens_per_micro_batch=250, layout=layout, world_size=2, max_epochs=4)
    for rank in (0, 1):
        whole = plan.sampler(rank)
        whole.set_epoch(3)
        expected = list(whole)
        assert len(expected) > 11
        resumed = plan.sampler(rank)
        resumed.load_state(whole.state(3, handed_out))
        assert list(resumed) == expected[handed_out:]
        assert len(resumed) == len(expected)


def test_a_state_of_another_budget_is_refused() -> None:
    one, other = (planned(lengths_of(29), max_tokens_per_micro_batch=tokens).sampler(0) for tokens in (200, 800))
    with refused("accumulation was 5, is 2", remedy="resume"):
        other.load_state(one.state(0, 5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_plan_is_a_function_of_its_settings(layout: str) -> None:
    plans = [planned(lengths_of(50), max_tokens_per_micro_batch=300, layout=layout, max_epochs=2) for _ in range(2)]
    for epoch in (0, 1):
        assert steps_of(plans[0], epoch) == steps_of(plans[1], epoch)
    assert steps_of(plans[0], 0) != steps_of(plans[0], 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    pairs=st.integers(1, 40),
    budget=st.integers(1, 900),
    micro_batch_size=st.integers(1, 5),
    world_size=st.integers(1, 2),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_within_a_chosen_budget_steps_have_the_same_pairs(
    layout: str, pairs: int, budget: int, micro_batch_size: int, world_size: int, epochs: int, seed: int
) -> None:
    """By count wherever no micro-batch can exceed it; else by tokens, whatever the run's length."""
    lengths = lengths_of(pairs, seed=pairs)
    settings: dict[str, Any] = {"accumulation": 2, "world_size": world_size, "seed": seed}
    by_count = StepPlan(pairs, micro_batch_size, max_epochs=epochs, **settings).for_lengths(lengths, layout)
    longer, plan = (
        StepPlan(pairs, micro_batch_size, max_epochs=count, **settings).within(budget, lengths, layout)
        for count in (epochs + 2, epochs)
    )
    if pairs <= 12:
        possible = combinations(range(pairs), min(pairs, micro_batch_size))
        within = all(COST[layout](lengths[list(rows)]) <= budget for rows in possible)
        assert isinstance(plan.micro_batching, ByCount) is within
    for epoch in range(epochs):
        steps = steps_of(plan, epoch)
        assert steps == steps_of(longer, epoch)
        if isinstance(plan.micro_batching, ByCount):
            assert steps == steps_of(by_count, epoch)
            continue
        expected = [{row for rank in step for row in real(rank)} for step in steps_of(by_count, epoch)]
        for step, rows in zip(steps, expected, strict=True):
            seen = [row for rank in step for row in real(rank)]
            assert (set(seen), len(seen)) == (rows, len(rows))
            used = [batch for rank in step for batch in rank if any(batch.weights)]
            if epoch == 0:
                assert all(COST[layout](lengths[list(b.rows)]) <= budget or len(b.rows) == 1 for b in used)
            if world_size == 1:  # no more than the budget asks for: the others are left empty
                assert len(used) == min(plan.accumulation, plan.micro_batching.needed(sorted(rows)))


def test_the_fullest_steps_decide_how_many_micro_batches_a_large_split_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caldpo.data.batching.STEPS_EXAMINED", 1)

    def used(lengths: list[list[int]]) -> list[int]:
        plan = StepPlan(8, 4).within(24, np.array(lengths), "packed")
        return [len(batch.rows) for batch in plan.sampler(0) if any(batch.weights)]

    assert used([[2, 2, 2]] * 4 + [[2, 11, 11]] * 4) == [4, 1, 1, 1, 1], (
        "the second, and what the first leaves is empty"
    )
    # of 54 tokens in 3 micro-batches, and of 52 that need 4: not examined, it exceeds the budget
    assert used([[2, 11, 11]] * 2 + [[1, 1, 1]] * 2 + [[1, 6, 6]] * 4) == [1, 1, 2, 2, 1, 1]


def test_dropping_the_only_step_is_refused_before_anything_runs() -> None:
    for tokens in (None, 100):
        with refused("5 pairs", 6, key="data.drop_last", value=True, remedy="data.drop_last=false"):
            planned(lengths_of(5), drop_last=True, max_tokens_per_micro_batch=tokens)
    assert StepPlan(5, 6).steps_per_epoch == 1


def test_nodes_that_chose_different_budgets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they share any work, where each would wait for the others forever."""
    data = Pairs(2, None)
    data.token_budget = 512
    data.setup("fit")
    monkeypatch.setattr("caldpo.data.data_loading.all_gather", lambda budget: [budget, 1024])
    key = "data.max_tokens_per_micro_batch"
    with refused("512, 1024", key=key, value="auto", remedy=f"{key}=512"):
        data.setup("fit")
