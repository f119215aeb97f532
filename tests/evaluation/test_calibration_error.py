"""Calibration of claimed preference probabilities against sums done by hand and data of known calibration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from caldpo.evaluation.calibration_error import calibration_error, expected_error, reliability_curve


def test_a_policy_that_is_its_reference_is_calibrated_at_one_half() -> None:
    assert calibration_error(np.zeros(7), bins=10) == 0
    (point,) = reliability_curve(np.zeros(7), bins=10)
    assert (point["claimed"], point["observed"], point["count"]) == (0.5, 0.5, 14)


def test_by_hand() -> None:
    """Three pairs claim 0.82 and two of them are right: off by 0.82 - 2/3 in both orders. One claims 0.65 rightly."""
    margins = logit(np.array([0.82, 0.82, 0.18, 0.65]))
    expected = (6 * (0.82 - 2 / 3) + 2 * (1 - 0.65)) / 8
    assert calibration_error(margins, bins=10) == pytest.approx(expected)
    curve = {round(point["claimed"], 6): point for point in reliability_curve(margins, bins=10)}
    assert curve[0.82]["observed"] == pytest.approx(2 / 3)
    assert curve[0.18]["observed"] == pytest.approx(1 / 3)
    assert curve[0.65]["observed"] == 1
    assert [curve[p]["count"] for p in (0.18, 0.35, 0.65, 0.82)] == [3, 1, 1, 3]


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_the_curve_adds_up_to_the_error(bins: int) -> None:
    margins = np.random.default_rng(0).normal(0.7, 2.0, size=500)
    curve = reliability_curve(margins, bins)
    total = sum(point["count"] for point in curve)
    summed = sum(point["count"] * abs(point["claimed"] - point["observed"]) for point in curve) / total
    assert total == 1000
    assert calibration_error(margins, bins) == pytest.approx(summed)
    for point in curve:
        assert point["low"] <= point["claimed"] <= point["high"]


def labelled(scale: float) -> np.ndarray:
    """Margins of a policy that claims ``sigmoid(scale x true margin)``, turned so that the label is the preferred."""
    rng = np.random.default_rng(3)
    true = rng.normal(0, 1.5, size=60_000)
    preferred = rng.random(60_000) < expit(true)
    return np.where(preferred, 1, -1) * scale * true


def test_bradley_terry_labels_are_calibrated_at_the_true_scale_alone() -> None:
    assert calibration_error(labelled(1.0), bins=10) < 0.01
    # overconfident: the claim is sigmoid(4 x) where sigmoid(x) comes true; by integration over the true margins
    grid = np.random.default_rng(4).normal(0, 1.5, size=200_000)
    assert calibration_error(labelled(4.0), bins=10) == pytest.approx(
        np.abs(expit(4 * grid) - expit(grid)).mean(), abs=0.01
    )
    assert calibration_error(labelled(0.25), bins=10) == pytest.approx(
        np.abs(expit(0.25 * grid) - expit(grid)).mean(), abs=0.01
    )


def test_certain_margins_stay_in_the_last_bins() -> None:
    curve = reliability_curve(np.array([800.0, 800.0, -800.0]), bins=4)
    assert [(point["low"], point["count"]) for point in curve] == [(0.0, 3), (0.75, 3)]
    assert calibration_error(np.array([800.0, 800.0, -800.0]), bins=4) == pytest.approx(1 / 3)


def test_the_error_by_chance_is_that_of_true_claims() -> None:
    """Labels drawn from the claims by another hand, one pair at a time; and none is left with very many pairs."""
    claims = np.random.default_rng(0).normal(0.5, 1.0, size=150)
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(300):
        preferred = rng.random(150) < expit(claims)
        errors.append(calibration_error(np.where(preferred, claims, -claims), bins=10))
    by_chance = expected_error(claims, bins=10, seed=0)
    assert by_chance == pytest.approx(np.mean(errors), rel=0.06)
    assert by_chance > 0.04
    assert expected_error(np.tile(claims, 400), bins=10, seed=0, draws=5) < 0.005
    assert expected_error(-claims, bins=10, seed=0) == by_chance, "the labels at hand do not matter"
    assert expected_error(np.zeros(20), bins=10, seed=0) == 0


@pytest.mark.parametrize(("largest", "smallest"), [(1.0, 0.0), (1 - 1e-9, 1e-9)])
def test_certainty_shares_the_last_bin_with_what_is_nearly_certain(largest: float, smallest: float) -> None:
    """0.95 wrong and 1.0 right in one bin: |0.95 + 1 - 1| / 2 there, and the same in the first one."""
    margins = np.array([-logit(0.95), 800.0 if largest == 1 else logit(largest)])
    by_hand = (abs(0.95 + largest - 1) + abs(0.05 + smallest - 1)) / 4
    assert calibration_error(margins, bins=10) == pytest.approx(by_hand, abs=1e-9)
    assert by_hand == pytest.approx(0.475, abs=1e-8)
