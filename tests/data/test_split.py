"""Prompts stay together, and where one goes depends on nothing but itself and the seed."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldpo.data.pair import PreferencePair, prompt_key
from caldpo.data.split import shared_prompts, split_by_prompt
from caldpo.errors import CaldpoError
from tests.helpers.messages import names, refused


def pairs_of(prompts):
    return [PreferencePair(p, f"a{i}", f"b{i}", origin=f"f:{i}") for i, p in enumerate(prompts)]


def test_key_ignores_what_a_reader_would():
    same = ["Caf\u00e9 au lait?", "cafe\u0301  au\nLAIT? ", "\tCAF\u00c9 au lait?"]
    assert len({prompt_key(p) for p in same}) == 1
    assert prompt_key("Cafe au lait?") != prompt_key(same[0])


def test_key_of_conversations_depends_on_roles_and_turns():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    swapped = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    joined = [{"role": "user", "content": "a b"}]
    spaced = [{"role": "user", "content": " A"}, {"role": "assistant", "content": "b\n"}]
    assert len({prompt_key(p) for p in (turns, swapped, joined)}) == 3
    assert prompt_key(tuple(turns)) == prompt_key(spaced)


def test_no_prompt_on_both_sides_and_order_kept():
    rng = random.Random(0)
    pairs = pairs_of([f"{'  ' * rng.randint(0, 1)}Prompt {rng.randint(0, 99)}" for _ in range(1000)])
    train, test = split_by_prompt(pairs, 0.2, seed=0)
    assert not shared_prompts(train, test)
    assert sorted([*train, *test], key=pairs.index) == pairs
    assert all(side == sorted(side, key=pairs.index) for side in (train, test))


@given(st.lists(st.text(), min_size=30, max_size=60, unique_by=prompt_key), st.integers(0, 5), st.randoms())
def test_adding_and_reordering_rows_moves_no_prompt(prompts, seed, rng):
    def test_side(chosen_prompts):
        try:
            return {pair.prompt for pair in split_by_prompt(pairs_of(chosen_prompts), 0.5, seed)[1]}
        except CaldpoError:  # one side empty, which a subset may be
            return None

    whole = test_side(prompts)
    part = prompts[:20]
    rng.shuffle(part)
    if whole is not None and (some := test_side(part)) is not None:
        assert some == whole & set(part)


def test_share_of_prompts_is_the_fraction_and_seeds_differ():
    """Within 4 standard deviations of a binomial: 0.1 +- 4 sqrt(0.1 * 0.9 / 20000) = 0.1 +- 0.0085."""
    pairs = pairs_of([f"p{i}" for i in range(20_000)])
    sides = [{p.prompt for p in split_by_prompt(pairs, 0.1, seed)[1]} for seed in (0, 1)]
    assert all(abs(len(side) / 20_000 - 0.1) < 0.0085 for side in sides)
    # independent draws: a prompt is in both with probability 0.01, +- 0.0028
    assert abs(len(sides[0] & sides[1]) / 20_000 - 0.01) < 0.0028


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fraction_out_of_range(fraction):
    with refused(key="data.test_fraction", value=fraction, remedy="data.test"):
        split_by_prompt(pairs_of(["a", "b"]), fraction, 0)


@pytest.mark.parametrize(("fraction", "side"), [(1e-9, "test"), (1 - 1e-9, "training")])
def test_empty_side_is_an_error_that_counts_prompts(fraction, side):
    with refused(f"{side} split", "2", key="data.test_fraction", value=fraction, remedy="data.test"):
        split_by_prompt(pairs_of(["a", "b", "A "]), fraction, 0)


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_the_fraction_that_an_empty_side_suggests_parts_the_prompts(count):
    pairs = pairs_of([f"p{i}" for i in range(count)])
    for seed in range(20):
        for fraction in (1e-9, 1 - 1e-9):
            with pytest.raises(CaldpoError) as caught:
                split_by_prompt(pairs, fraction, seed)
            suggested = float(re.search(r"data\.test_fraction=([\d.]*\d)", caught.value.remedy)[1])
            train, test = split_by_prompt(pairs, suggested, seed)
            names(caught, key="data.test_fraction", remedy=len(test))
            assert {len(train), len(test)} == {1, count - 1}
    with refused("test split", "1", key="data.test_fraction", value=0.1, remedy="data.test") as caught:
        split_by_prompt(pairs_of(["a"]), 0.1, 0)
    assert "data.test_fraction=" not in caught.value.remedy


def test_shared_prompts_name_both_rows():
    train, test = pairs_of(["x", "Y", "y"]), [PreferencePair("y ", "c", "d", origin="t:0")]
    assert shared_prompts(train, test) == {prompt_key("y"): ("f:1", "t:0")}
    assert shared_prompts(train, pairs_of(["z"])) == {}
