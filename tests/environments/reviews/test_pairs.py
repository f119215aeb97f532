"""Writers and pairs: skill shows in the reward, labels follow it with noise, seeds decide everything."""

from __future__ import annotations

import random
import statistics

import pytest
from scipy import stats

from caldpo.environments.bradley_terry import preference_probability
from caldpo.environments.pair_sampling import PairRecipe, sample_pairs
from caldpo.environments.reviews.review_prompts import parse_prompt, sample_prompts
from caldpo.environments.reviews.review_reward import parse_sentence, reward
from caldpo.environments.reviews.writers import WRITERS, write


def rows(split: str = "train", count: int = 2000, seed: int = 0, sharpness: float | None = 8.0) -> list[dict]:
    return list(sample_pairs(PairRecipe("reviews", seed, sharpness), split, count))  # type: ignore[arg-type]


def test_better_writers_earn_more() -> None:
    rng = random.Random(0)
    prompts = sample_prompts("train", 1500, rng)
    means = {
        name: statistics.mean(reward(str(p), write(p, writer, rng)) for p in prompts)
        for name, writer in WRITERS.items()
    }
    assert list(means) == ["weak", "plain", "good", "expert"]
    assert list(means.values()) == sorted(means.values())
    assert means["expert"] - means["weak"] > 1.5


def test_a_writer_without_slips_writes_well_formed_reviews_on_topic() -> None:
    rng = random.Random(0)
    for prompt in sample_prompts("train", 300, rng):
        review = write(prompt, WRITERS["expert"], rng)
        assert review.startswith(" the ")
        assert review.endswith(" .")
        clauses = [parse_sentence(s.split()) for s in review.removesuffix(" .").split(" . ")]
        assert {c.subject for c in clauses if c} == {*prompt.aspects, "overall"}


def test_rewards_have_about_zero_mean_and_unit_variance() -> None:
    scores = [row[key] for row in rows(count=4000) for key in ("score_chosen", "score_rejected")]
    assert statistics.mean(scores) == pytest.approx(0.0, abs=0.05)
    assert statistics.stdev(scores) == pytest.approx(1.0, abs=0.05)


def test_scores_are_the_true_rewards_and_prompts_differ() -> None:
    data = rows()
    for row in data:
        assert row["score_chosen"] == reward(row["prompt"], row["chosen"])
        assert row["score_rejected"] == reward(row["prompt"], row["rejected"])
        assert row["score_chosen"] != row["score_rejected"]
        assert parse_prompt(row["prompt"]) is not None
    assert len({row["prompt"] for row in data}) == len(data)


def test_label_noise_is_bradley_terrys() -> None:
    data = rows(count=4000)
    gaps = [abs(row["score_chosen"] - row["score_rejected"]) for row in data]
    flipped = sum(row["score_chosen"] < row["score_rejected"] for row in data)
    expected = sum(preference_probability(0.0, gap, 8.0) for gap in gaps)
    variance = sum(p * (1 - p) for p in (preference_probability(0.0, gap, 8.0) for gap in gaps))
    assert abs(flipped - expected) < stats.norm.isf(5e-4) * variance**0.5
    assert 0.03 < flipped / 4000 < 0.06


def test_labels_without_noise() -> None:
    assert all(row["score_chosen"] > row["score_rejected"] for row in rows(sharpness=None))


def test_everything_is_a_function_of_the_seed() -> None:
    assert rows(count=50) == rows(count=50)
    assert rows(count=50)[0] != rows(count=50, seed=1)[0]


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_no_prompt_is_in_both_splits(seeds: tuple[int, int]) -> None:
    train = {row["prompt"] for row in rows("train", 3000, seeds[0])}
    test = {row["prompt"] for row in rows("test", 3000, seeds[1])}
    assert not train & test
