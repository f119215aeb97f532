"""Sums, chains and their reward: by hand, by eval, and one token between a chain and its slip."""

from __future__ import annotations

import random
import statistics

import pytest

from caldpo.environments.arithmetic.arithmetic_environment import Arithmetic
from caldpo.environments.arithmetic.chain_reward import CENTRE, FAULT_COST, SCALE, chain_reward, is_correct
from caldpo.environments.arithmetic.chains import SLIPS, correct_chain, slipped_chain
from caldpo.environments.arithmetic.sums import SHIFTED_TERMS, TERMS, Sum, parse_sum, sample_sums, sum_count
from caldpo.environments.pair_sampling import PairRecipe, sample_pairs
from caldpo.environments.sft_policy import build_tokenizer
from caldpo.environments.text_environment import SPLITS
from tests.helpers.messages import refused

PROMPT = "Add 7 + 11 + 9 ."
RIGHT = " 7 + 11 = 18 . 18 + 9 = 27 . answer 27 ."


def test_a_sum_as_text() -> None:
    assert str(Sum((7, 11, 9))) == PROMPT
    assert parse_sum(f"  {PROMPT}\n") == Sum((7, 11, 9))
    assert correct_chain(Sum((7, 11, 9))) == RIGHT


@pytest.mark.parametrize(
    "text", ["", "Add", "Add 7 .", PROMPT[:-2], PROMPT + " .", PROMPT.replace("+", "-", 1), "Add 07 + 3 ."]
)
def test_other_strings_are_no_sums(text: str) -> None:
    assert parse_sum(text) is None


def test_splits_never_meet_and_are_balanced() -> None:
    drawn = {split: sample_sums(split, 2000, random.Random(0)) for split in SPLITS}
    for split, prompts in drawn.items():
        assert len(set(prompts)) == 2000
        assert {prompt.split for prompt in prompts} == {split}
        lengths = [len(prompt.terms) for prompt in prompts]
        assert set(lengths) == set(TERMS)
        assert max(map(lengths.count, TERMS)) < 1.2 * min(map(lengths.count, TERMS))
    assert {len(p.terms) for p in sample_sums("train", 500, random.Random(0), shifted=True)} == set(SHIFTED_TERMS)
    too_many = sum_count("test") + 1
    with refused(f"{too_many - 1:,}", key="data.source.test_pairs", value=too_many):
        sample_sums("test", too_many, random.Random(0))
    assert len(sample_sums("test", too_many - 1, random.Random(0))) == too_many - 1


def test_chains_are_true_and_slips_differ_in_one_number() -> None:
    rng = random.Random(0)
    for prompt in sample_sums("train", 300, rng):
        *steps, answer = correct_chain(prompt).removesuffix(" .").split(" . ")
        assert all(eval(step.replace("=", "==")) for step in steps)
        assert answer.split() == ["answer", str(eval(str(prompt)[4:-2]))]
        right, slip = correct_chain(prompt).split(), slipped_chain(prompt, rng).split()
        ((a, b),) = [(a, b) for a, b in zip(right, slip, strict=True) if a != b]
        assert int(b) - int(a) in SLIPS
        assert is_correct(str(prompt), " ".join(right))
        assert not is_correct(str(prompt), " ".join(slip))


@pytest.mark.parametrize(
    ("response", "raw"),
    [
        (RIGHT, 2.0),
        (RIGHT.replace("= 18", "= 19"), 1.5),  # goes on from the true sum
        (RIGHT.replace("18", "19").replace("27", "28"), 0.0),  # goes on from the wrong one
        (RIGHT.replace("answer 27", "answer 26"), 1.0),
        (" answer 27 .", 1.0),
        (" 7 + 11 = 18 .", 0.5),
        (" 11 + 7 = 18 . 18 + 9 = 27 . answer 27 .", 1.5),  # another order of terms
        # faults
        ("", -FAULT_COST),
        (RIGHT + " nonsense .", 2.0 - FAULT_COST),
        (RIGHT + " answer 27 .", 2.0 - FAULT_COST),
        (RIGHT + " 27 + 1", 2.0 - FAULT_COST),
        (RIGHT.replace(" answer", " 27 + 0 = 27 . answer"), 2.0 - FAULT_COST),
        (" answer 27 . 7 + 11 = 18 .", 1.0 - FAULT_COST),
        (RIGHT + " ." * 20, 2.0 - 4 * FAULT_COST),
    ],
)
def test_reward_by_hand(response: str, raw: float) -> None:
    assert chain_reward(PROMPT, response) == pytest.approx((raw - CENTRE) / SCALE)


def test_a_prompt_of_another_kind_leaves_the_costs_alone() -> None:
    assert chain_reward("Tell me a joke", " answer 3 . 1 + 1 = 2 .") == pytest.approx(
        (-2 * FAULT_COST - CENTRE) / SCALE
    )


def test_pairs_are_a_chain_and_its_slip_and_rewards_have_about_unit_variance() -> None:
    rows = list(sample_pairs(PairRecipe("arithmetic", 0, 4.0), "train", 1600))
    assert all(is_correct(r["prompt"], r["chosen"]) != is_correct(r["prompt"], r["rejected"]) for r in rows)
    scores = [row[side] for row in rows for side in ("score_chosen", "score_rejected")]
    assert statistics.mean(scores) == pytest.approx(0.0, abs=0.05)
    assert statistics.stdev(scores) == pytest.approx(1.0, abs=0.05)
    assert 0.02 < sum(r["score_chosen"] < r["score_rejected"] for r in rows) / 1600 < 0.08


def test_every_word_is_one_known_token_and_a_sample_of_48_tokens_fits() -> None:
    tokenizer, rng = build_tokenizer(Arithmetic()), random.Random(0)
    prompts = sample_sums("train", 500, rng)
    for prompt, response in zip(prompts, Arithmetic().demonstrations(prompts, rng), strict=True):
        ids = tokenizer(str(prompt) + response)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == 1 + len((str(prompt) + response).split()) < Arithmetic.max_length
        assert tokenizer.decode(ids, skip_special_tokens=True) == str(prompt) + response
        assert len(tokenizer(str(prompt))["input_ids"]) + 48 <= Arithmetic.max_length
    highest = Sum((11,) * 7)
    assert str(highest.totals[-1] + max(SLIPS)) in Arithmetic.later_words
