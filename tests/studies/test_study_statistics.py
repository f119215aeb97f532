"""The statistics of a study, against values computed another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from caldpo.studies.study_statistics import (
    cliques,
    detectable_difference,
    holm,
    interval,
    paired_difference,
    probability_of_best,
    ranking,
    resampled_means,
    reward_at_kl,
)

RNG = np.random.default_rng(7)


def test_resamples_have_the_variance_of_both_levels() -> None:
    """Drawing S seeds and P prompts of each with replacement: Var = v_between / S + mean(v_within) / (S P)."""
    values = RNG.normal(size=(4, 1)) + RNG.normal(size=(4, 30))
    drawn = resampled_means(values, 20_000, seed=0)
    between, within = values.mean(axis=1).var(), values.var(axis=1).mean()
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.02)
    assert drawn.var() == pytest.approx(between / 4 + within / (4 * 30), rel=0.05)


def test_an_interval_of_equal_seeds_is_that_of_their_prompts() -> None:
    prompts = RNG.normal(size=200)
    low, high = interval(np.stack([prompts] * 5), 4000)
    half = 1.96 * prompts.std() / math.sqrt(5 * 200)
    assert (low, high) == pytest.approx((prompts.mean() - half, prompts.mean() + half), abs=0.15 * half)


def test_rows_are_compared_seed_by_seed() -> None:
    base = RNG.normal(size=(6, 40))
    row = base + 0.1 + RNG.normal(scale=0.05, size=(6, 1))
    found = paired_difference(row, base, 500)
    by_scipy = stats.ttest_rel(row.mean(axis=1), base.mean(axis=1))
    assert found.p == pytest.approx(by_scipy.pvalue)
    assert found.mean == pytest.approx((row - base).mean())
    # what seeds and prompts share cancels out: the interval of the row alone is far wider
    assert found.high - found.low < 0.5 * np.subtract(*interval(row, 500)[::-1])


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_differences_without_spread_have_a_plain_answer(gap: float, p: float) -> None:
    base = np.zeros((3, 4))
    assert paired_difference(base + gap, base, 10).p == p


def test_holm_by_hand() -> None:
    """Of 0.01, 0.04, 0.03: 3 x 0.01; then 2 x 0.03; then 1 x 0.04, which may not fall below the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    with_unknown = holm([float("nan"), 0.02])
    assert math.isnan(with_unknown[0])
    assert with_unknown[1] == 0.02


def test_probability_of_being_best() -> None:
    better = np.ones((3, 5))
    equal = probability_of_best({"a": better, "b": better.copy(), "c": better - 1}, 100)
    assert equal == {"a": 0.5, "b": 0.5, "c": 0.0}
    # of two independent normal means, by the normal distribution of their difference
    a, b = RNG.normal(0.03, 1, size=(400, 1)), RNG.normal(0.0, 1, size=(400, 1))
    expected = stats.norm.cdf((a - b).mean() / ((a - b).std() / math.sqrt(400)))
    assert probability_of_best({"a": a, "b": b}, 4000)["a"] == pytest.approx(expected, abs=0.03)


def test_ranks_and_friedmans_test_by_their_formulas() -> None:
    """chi2 = 12 N / (k (k + 1)) (sum of squared average ranks - k (k + 1)^2 / 4), Demsar 2006, section 3.2.2."""
    table = RNG.normal(size=(4, 14)) + np.array([[0.8], [0.0], [0.1], [0.5]])
    found = ranking(dict(zip("abcd", table.tolist(), strict=True)))
    assert found is not None
    average = [1 + np.mean([(table[:, n] > table[i, n]).sum() for n in range(14)]) for i in range(4)]
    assert list(found.ranks.values()) == pytest.approx(average)
    chi2 = 12 * 14 / 20 * (np.sum(np.square(average)) - 4 * 25 / 4)
    assert found.friedman_p == pytest.approx(stats.chi2.sf(chi2, 3))


@pytest.mark.parametrize(("rows", "q"), [(3, 2.343), (4, 2.569), (10, 3.164)])
def test_critical_differences_are_those_of_the_published_table(rows: int, q: float) -> None:
    """Demsar 2006, table 5 (a), at 5 %."""
    found = ranking({str(i): RNG.normal(size=14).tolist() for i in range(rows)})
    assert found is not None
    assert found.critical_difference == pytest.approx(q * math.sqrt(rows * (rows + 1) / (6 * 14)), abs=1e-3)


def test_equal_values_share_their_ranks_and_a_run_that_diverged_is_last() -> None:
    found = ranking({"a": [1.0, 1.0], "b": [1.0, 2.0], "c": [-math.inf, 0.0]})
    assert found is not None
    assert found.ranks == {"a": 1.75, "b": 1.25, "c": 3.0}


def test_cliques_are_as_large_as_possible() -> None:
    found = ranking({name: [value] * 40 for name, value in (("a", 3.0), ("b", 2.0), ("c", 1.0))})
    assert found is not None
    assert found.ranks == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert cliques(found) == []  # 0.52 apart is enough with 40 blocks


def test_too_few_for_a_ranking() -> None:
    assert ranking({"a": [1.0, 2.0], "b": [2.0, 1.0]}) is None
    assert ranking({"a": [1.0], "b": [2.0], "c": [3.0]}) is None
    assert ranking({}) is None


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_power_is_that_of_the_noncentral_t(seeds: int) -> None:
    sd, alpha = 0.3, 0.05
    effect = detectable_difference(sd, seeds, alpha) / sd * math.sqrt(seeds)
    threshold = stats.t.ppf(1 - alpha / 2, seeds - 1)
    power = stats.nct.sf(threshold, seeds - 1, effect) + stats.nct.cdf(-threshold, seeds - 1, effect)
    assert power == pytest.approx(0.8, abs=2e-3)


def test_power_needs_spread_and_seeds() -> None:
    assert math.isnan(detectable_difference(0.3, 1))
    assert math.isnan(detectable_difference(float("nan"), 5))
    assert detectable_difference(0.3, 5, 0.001) > detectable_difference(0.3, 5)


def test_reward_is_interpolated_where_the_path_first_reaches_the_kl() -> None:
    path = [{"kl": 0.0, "reward": 0.0}, {"kl": 4.0, "reward": 2.0}, {"kl": 1.0, "reward": 9.0}]
    path.append({"kl": 3.0, "reward": 7.0})
    assert reward_at_kl(path, 1.0) == 1.0  # not the 9.0 of the second time
    assert reward_at_kl(path, 4.0) == 2.0
    assert math.isnan(reward_at_kl(path, 4.5))
    assert math.isnan(reward_at_kl([], 1.0))
    below = [{"kl": -0.01, "reward": 0.0}, {"kl": 4.0, "reward": 2.0}]
    assert reward_at_kl(below, 1.0) == 1.0


def test_one_tradeoff_gives_one_reward_at_a_kl_whatever_the_steps_along_it() -> None:
    def path(*kls: float) -> list[dict[str, float]]:
        return [{"kl": kl, "reward": 0.7 * math.sqrt(kl)} for kl in kls]

    assert reward_at_kl(path(0.0, 9.0), 2.0) == pytest.approx(reward_at_kl(path(0.0, 0.5, 1.9, 2.1), 2.0))


def test_a_broken_path_has_no_reward_at_a_kl() -> None:
    path = [{"kl": 0.0, "reward": 0.0}]
    broken = [path[0], {"kl": None, "reward": 1.0}, {"kl": 4.0, "reward": 2.0}]
    assert math.isnan(reward_at_kl(broken, 2.0))
