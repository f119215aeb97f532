"""Batches for losses that read whole optimiser steps: what a step's first one brings, and mismatched responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caldpo.data.batching import StepPlan
from caldpo.data.data_loading import PairBatches, PairLoader, with_responses
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.nonfinite.step_dump import sequences_of
from caldpo.types import PairBatch
from tests.data.test_pair_stream import stream
from tests.helpers.tiny import tiny_pairs

PAIRS = tiny_pairs(21)


def plan_of(**changes: Any) -> StepPlan:
    """Steps of 8, the last of an epoch of 5."""
    return StepPlan(21, **{"micro_batch_size": 2, "accumulation": 2, "world_size": 2, "seed": 3} | changes)


def batches(plan: StepPlan, rank: int = 0, *, workers: int = 0, max_length: int = 99) -> list[PairBatch]:
    made = PairBatches(TokenizedPairs(PAIRS), 0, split="train", max_length=max_length)
    loader = PairLoader(made, plan.sampler(rank), workers=workers)
    found = list(loader)
    loader.close()
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_batch_of_a_step_brings_all_of_this_rank(workers: int) -> None:
    plan = plan_of(reads_ahead=True)
    found = batches(plan, rank=1, workers=workers)
    plain = batches(plan_of(), rank=1)
    assert [b.index.tolist() for b in found] == [b.index.tolist() for b in plain]
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert [b.index.tolist() for b in first.ahead] == [first.index.tolist(), second.index.tolist()]
        assert not second.ahead
        moved = first.to("cpu")
        assert [b.index.tolist() for b in moved.ahead] == [b.index.tolist() for b in first.ahead]
    assert all(b.places is None and not b.ahead for b in plain)


def test_places_are_those_in_the_step_over_all_ranks() -> None:
    plan = plan_of(reads_ahead=True)
    ranks = [batches(plan, rank) for rank in (0, 1)]
    for number, step in enumerate(plan.epoch_steps(0)):
        row_at = {}
        for batch in (b for found in ranks for b in found[2 * number : 2 * number + 2]):
            assert batch.places is not None
            if not batch.filler:
                row_at |= zip(batch.places.tolist(), batch.index.tolist(), strict=True)
        assert [row_at[place] for place in range(len(step))] == list(step)


@pytest.mark.parametrize("max_length", [99, 9])
def test_mismatched_are_each_prompt_and_the_next_responses_of_the_step(max_length: int) -> None:
    plan = plan_of(reads_ahead=True, mismatched=True)
    seen = {}
    for rank in (0, 1):
        for number, batch in enumerate(batches(plan, rank, max_length=max_length)):
            if not batch.filler:
                assert batch.mismatched is not None
                assert batch.mismatched.split == ""
                seen |= zip(
                    [(number // 2, i) for i in batch.index.tolist()], sequences_of(batch.mismatched), strict=True
                )
    for number, step in enumerate(plan.epoch_steps(0)):
        for row, following in zip(step, [*step[1:], step[0]], strict=True):
            prompt, other = PAIRS[row].prompt_ids, PAIRS[following]
            room = max_length - len(prompt)
            assert seen[number, row] == (prompt, other.chosen_ids[:room], other.rejected_ids[:room])


def test_a_step_of_one_pair_has_no_mismatched_response() -> None:
    plan = StepPlan(9, 8, mismatched=True, reads_ahead=True)
    made = PairBatches(TokenizedPairs(PAIRS[:9]), 0)
    assert [made[batch].mismatched is None for batch in plan.sampler()] == [False, True]


def test_a_response_keeps_a_token_of_its_own() -> None:
    mixed = with_responses(PAIRS[0], PAIRS[1], len(PAIRS[0].prompt_ids))
    assert (len(mixed.chosen_ids), len(mixed.rejected_ids)) == (1, 1)


def test_an_epoch_goes_on_at_the_end_of_a_step_only() -> None:
    plan = plan_of(reads_ahead=True)
    loader = PairLoader(PairBatches(TokenizedPairs(PAIRS), 0), plan.sampler(0))
    loader.load_state_dict(plan.sampler(0).state(0, 4))
    rest = list(loader)
    assert [b.index.tolist() for b in rest] == [b.index.tolist() for b in batches(plan)[4:]]
    assert len(rest[0].ahead) == 2
    loader.load_state_dict(plan.sampler(0).state(0, 3))
    with pytest.raises(RuntimeError, match="end of one"):
        next(iter(loader))


def test_a_stream_is_read_ahead(tmp_path: Path) -> None:
    module = stream(tmp_path)
    plan = module.plan_steps(
        "padded", accumulation=4, world_size=1, max_epochs=1, max_steps=10, reads_ahead=True, mismatched=True
    )
    found = []
    for batch in PairLoader(module._dataset("train"), plan.sampler()):
        found.append(batch)
        if len(found) == 40:
            break
    order = [i for batch in found for i in batch.index.tolist()]
    assert order == list(range(len(order)))
    size = plan.step_size
    assert module.stream is not None
    for batch in found:
        assert batch.mismatched is not None
        for row, (prompt, chosen, _) in zip(batch.index.tolist(), sequences_of(batch.mismatched), strict=True):
            following = row + 1 if (row + 1) % size else row + 1 - size
            assert (prompt, chosen) == (module.stream[row].prompt_ids, module.stream[following].chosen_ids)
