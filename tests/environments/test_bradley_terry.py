"""Bradley-Terry labels: the formula, its limits, and the frequency of draws."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats
from scipy.special import expit

from caldpo.environments.bradley_terry import preference_probability, prefers_first


@pytest.mark.parametrize(("first", "second"), [(0.3, -0.4), (-2.0, 1.0), (1.5, 1.5)])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0])
def test_probability_is_the_logistic_of_the_gap(first: float, second: float, sharpness: float) -> None:
    expected = expit(sharpness * (first - second))
    assert preference_probability(first, second, sharpness) == pytest.approx(expected, rel=1e-12)


def test_probabilities_of_both_orders_add_up() -> None:
    assert preference_probability(0.7, 0.2, 3.0) + preference_probability(0.2, 0.7, 3.0) == pytest.approx(1.0)


def test_without_noise_the_better_one_wins_and_ties_are_even() -> None:
    assert [preference_probability(a, b, None) for a, b in ((1, 0), (0, 1), (2, 2))] == [1.0, 0.0, 0.5]


def test_a_huge_gap_does_not_overflow() -> None:
    assert preference_probability(-1e200, 1e200, 8.0) == 0.0
    assert preference_probability(1e200, -1e200, 8.0) == 1.0


def test_labels_are_drawn_with_that_probability() -> None:
    rng = random.Random(0)
    wins = sum(prefers_first(0.5, 0.0, 2.0, rng) for _ in range(4000))
    assert stats.binomtest(wins, 4000, 1 / (1 + math.exp(-1.0))).pvalue > 1e-3
