"""Means, bands and the rule for marking a best, against values computed by hand and by SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from caldpo.compare.statistics import (
    Estimate,
    band,
    difference_interval,
    estimate,
    leader,
    t_cdf,
    t_quantile,
)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 10, 29, 100])
def test_students_t_agrees_with_scipy(df):
    for p in (0.6, 0.9, 0.975, 0.999):
        assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9)
    for t in (0.0, 0.3, 2.0, 15.0):
        assert t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), abs=1e-12)


def test_estimate_by_hand():
    # mean 2, squared deviations 1 + 1 + 4 = 6 over n - 1 = 2
    assert estimate([1.0, 1.0, 4.0]) == Estimate(2.0, pytest.approx(math.sqrt(3)), 3)
    assert estimate([7.0]) == Estimate(7.0, None, 1)
    assert estimate([]) is None


def test_equal_values_have_no_spread_despite_rounding():
    # the mean of three 0.7 is 0.6999..., which would leave a spread of 1e-16
    assert estimate([0.7, 0.7, 0.7]) == Estimate(0.7, 0.0, 3)


def test_a_seed_that_is_not_a_number_is_not_dropped_from_the_mean():
    assert math.isnan(estimate([1.0, math.nan]).mean)


def test_band_between_lowest_and_highest_seed():
    found = band([{0: 0.0, 10: 2.0}, {0: 0.0, 10: 4.0}, {0: 0.0, 10: 9.0}], "range")
    assert found.n == 3
    assert found.steps.tolist() == [0, 10]
    assert found.mean.tolist() == [0.0, 5.0]
    assert found.low.tolist() == [0.0, 2.0]
    assert found.high.tolist() == [0.0, 9.0]


def test_band_of_one_standard_deviation():
    found = band([{5: 1.0}, {5: 1.0}, {5: 4.0}], "sd")
    assert found.low == pytest.approx([2 - math.sqrt(3)])
    assert found.high == pytest.approx([2 + math.sqrt(3)])
    alone = band([{5: 1.0}], "sd")
    assert alone.low.tolist() == alone.high.tolist() == [1.0]


def test_band_only_where_every_seed_was_measured():
    found = band([{0: 1.0, 10: 2.0, 20: 3.0}, {0: 3.0, 20: 5.0}], "range")
    assert found.steps.tolist() == [0, 20]
    assert found.mean.tolist() == [2.0, 4.0]
    assert band([{0: 1.0}, {5: 1.0}], "range") is None
    assert band([], "range") is None


def test_difference_interval_is_that_of_the_two_sample_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 4), rng.normal(1, 2, 6)
    interval = stats.ttest_ind(a, b).confidence_interval(0.95)
    width = difference_interval(estimate(a.tolist()), estimate(b.tolist()))
    assert width == pytest.approx((interval.high - interval.low) / 2)


@pytest.mark.parametrize(("gap", "marked"), [(2.7, None), (2.9, "good")])
def test_leader_just_inside_and_outside_the_interval(gap, marked):
    # half width t(0.975, 4) * sqrt(1.5 * (1/3 + 1/3)) = 2.776 * 1
    sd = math.sqrt(1.5)
    found = {"good": Estimate(gap, sd, 3), "bad": Estimate(0.0, sd, 3)}
    assert leader(found, "higher") == marked


def test_leader_direction_and_every_other_counts():
    tight = {"a": Estimate(1.0, 0.01, 3), "b": Estimate(2.0, 0.01, 3)}
    assert leader(tight, "higher") == "b"
    assert leader(tight, "lower") == "a"
    # c is far behind in the mean, but so uncertain that b cannot be said to beat it
    assert leader({**tight, "c": Estimate(0.0, 5.0, 3)}, "higher") is None


def test_nobody_leads_with_a_single_seed_a_tie_or_a_failure():
    assert leader({"a": Estimate(1.0, None, 1), "b": Estimate(9.0, None, 1)}, "higher") is None
    assert leader({"a": Estimate(1.0, 0.0, 3), "b": Estimate(1.0, 0.0, 3)}, "higher") is None
    assert leader({"a": Estimate(math.nan, math.nan, 3), "b": Estimate(1.0, 0.1, 3)}, "higher") is None
    assert leader({"a": Estimate(1.0, 0.1, 3)}, "higher") is None
