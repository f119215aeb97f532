"""Means, bands and the rule for marking a best, against values computed by hand and by SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from caldpo.report.statistics import (
    Estimate,
    band,
    clear_of_others,
    difference_interval,
    estimate,
    leader,
)


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
    mean_band = band([{0: 0.0, 10: 2.0}, {0: 0.0, 10: 4.0}, {0: 0.0, 10: 9.0}], "range")
    assert mean_band.n == 3
    assert mean_band.steps.tolist() == [0, 10]
    assert mean_band.mean.tolist() == [0.0, 5.0]
    assert mean_band.low.tolist() == [0.0, 2.0]
    assert mean_band.high.tolist() == [0.0, 9.0]


def test_band_of_one_standard_deviation():
    mean_band = band([{5: 1.0}, {5: 1.0}, {5: 4.0}], "sd")
    assert mean_band.low == pytest.approx([2 - math.sqrt(3)])
    assert mean_band.high == pytest.approx([2 + math.sqrt(3)])
    alone = band([{5: 1.0}], "sd")
    assert alone.low.tolist() == alone.high.tolist() == [1.0]


def test_band_only_where_every_seed_was_measured():
    mean_band = band([{0: 1.0, 10: 2.0, 20: 3.0}, {0: 3.0, 20: 5.0}], "range")
    assert mean_band.steps.tolist() == [0, 20]
    assert mean_band.mean.tolist() == [2.0, 4.0]
    assert band([{0: 1.0}, {5: 1.0}], "range") is None
    assert band([], "range") is None


def test_difference_interval_is_that_of_the_two_sample_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 4), rng.normal(1, 2, 6)
    interval = stats.ttest_ind(a, b).confidence_interval(0.95)
    width = difference_interval(estimate(a.tolist()), estimate(b.tolist()))
    assert width == pytest.approx((interval.high - interval.low) / 2)


def test_difference_interval_by_hand():
    # variances 4 (n 3) and 1 (n 2): pooled (2 * 4 + 1 * 1) / 3 = 3; t(0.975, 3) = 3.18245 from a printed table
    width = difference_interval(Estimate(5.0, 2.0, 3), Estimate(1.0, 1.0, 2))
    assert width == pytest.approx(3.18245 * math.sqrt(3 * (1 / 3 + 1 / 2)), rel=1e-5)
    assert difference_interval(Estimate(5.0, 2.0, 3), Estimate(1.0, None, 1)) is None


@pytest.mark.parametrize(("gap", "marked"), [(2.7, None), (2.9, "good")])
def test_leader_just_inside_and_outside_the_interval(gap, marked):
    # half width t(0.975, 4) * sqrt(1.5 * (1/3 + 1/3)) = 2.776 * 1
    sd = math.sqrt(1.5)
    estimates = {"good": Estimate(gap, sd, 3), "bad": Estimate(0.0, sd, 3)}
    assert leader(estimates, "higher") == marked


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


def test_an_interval_clear_of_all_others():
    intervals = {"a": (0.1, 0.2), "b": (0.3, 0.5), "c": (0.25, 0.29)}
    assert clear_of_others(intervals, "higher") == "b"
    assert clear_of_others(intervals, "lower") == "a"
    assert clear_of_others({**intervals, "c": (0.0, 0.3)}, "higher") is None, "intervals that touch are not disjoint"
    assert clear_of_others({"a": (0.1, 0.2)}, "higher") is None, "there is nothing to be better than"
