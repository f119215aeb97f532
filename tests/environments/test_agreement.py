"""Agreement of implicit and true rewards against scipy and worked examples."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from caldpo.environments.reward_agreement import reward_agreement
from tests.helpers.messages import refused


def test_against_scipy_on_residuals_of_prompt_means() -> None:
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(30), 4)
    true = rng.normal(size=120)
    implicit = 0.4 * true + rng.normal(size=120) * 0.3 + np.repeat(rng.normal(size=30) * 10, 4)
    # two-way: regress on a dummy per prompt instead of subtracting means
    design = np.column_stack([true, np.eye(30)[prompts]])
    slope = np.linalg.lstsq(design, implicit, rcond=None)[0][0]
    dummies = np.eye(30)[prompts]
    x, y = (v - dummies @ np.linalg.lstsq(dummies, v, rcond=None)[0] for v in (true, implicit))
    order = rng.permutation(120)
    got = reward_agreement(implicit[order].tolist(), true[order].tolist(), prompts[order].tolist())
    assert got["slope"] == pytest.approx(slope, rel=1e-9)
    assert got["slope"] == pytest.approx(stats.linregress(x, y).slope, rel=1e-9)
    assert got["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-9)
    assert got["spearman"] == pytest.approx(stats.pearsonr(stats.rankdata(x), stats.rankdata(y)).statistic, rel=1e-9)
    assert got["error"] == pytest.approx(np.mean(np.abs(x - y)), rel=1e-9)


def test_worked_example() -> None:
    # centred: true +-1 and +-2, implicit +-1/2 and +-1; differences 1/2, 1/2, 1, 1
    got = reward_agreement([7.5, 6.5, -4.0, -6.0], [1.0, -1.0, 12.0, 8.0], ["a", "a", "b", "b"])
    assert got == pytest.approx({"slope": 0.5, "pearson": 1.0, "spearman": 1.0, "error": 0.75})


def test_reversed_rewards_have_a_negative_slope() -> None:
    got = reward_agreement([-3.0, 3.0], [1.0, -1.0], [0, 0])
    assert got == pytest.approx({"slope": -3.0, "pearson": -1.0, "spearman": -1.0, "error": 4.0})


def test_a_constant_per_prompt_makes_no_difference() -> None:
    rng = random.Random(0)
    implicit, true = [[rng.gauss(0, 1) for _ in range(12)] for _ in range(2)]
    prompts = [i // 3 for i in range(12)]
    shifted = [v + 5.0 * p for v, p in zip(implicit, prompts, strict=True)]
    assert reward_agreement(shifted, true, prompts) == pytest.approx(reward_agreement(implicit, true, prompts))


def test_prompts_with_one_response_count_nothing() -> None:
    pair = reward_agreement([1.0, 0.0], [2.0, 1.0], ["a", "a"])
    with_single = reward_agreement([1.0, 9.0, 0.0], [2.0, -9.0, 1.0], ["a", "b", "a"])
    assert with_single == pytest.approx(pair)


@pytest.mark.parametrize(
    ("implicit", "true", "prompts", "undefined"),
    [
        ([], [], [], {"slope", "pearson", "spearman", "error"}),
        ([1.0], [1.0], ["a"], {"slope", "pearson", "spearman", "error"}),
        ([1.0, 2.0], [3.0, 3.0], ["a", "a"], {"slope", "pearson", "spearman"}),
        ([1.0, 1.0], [2.0, 3.0], ["a", "a"], {"pearson", "spearman"}),
    ],
)
def test_undefined_values_are_nan(
    implicit: list[float], true: list[float], prompts: list[str], undefined: set[str]
) -> None:
    got = reward_agreement(implicit, true, prompts)
    assert {name for name, value in got.items() if math.isnan(value)} == undefined


def test_lengths_must_agree() -> None:
    with refused("2 implicit", "1 true", "2 prompts", kind=ValueError):
        reward_agreement([1.0, 2.0], [1.0], ["a", "a"])
