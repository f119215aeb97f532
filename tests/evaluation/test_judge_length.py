"""The length-controlled rate against brute force, known coefficients and cases that can be solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caldpo.evaluation.judge.win_rates import RIDGE, fit, length_controlled


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_fit_is_the_best_point_of_a_grid() -> None:
    rng = np.random.default_rng(0)
    feature = np.tanh(rng.normal(0.4, 1, 40))
    scores = rng.choice([0, 0.25, 0.5, 0.75, 1.0], 40)
    a, b = np.meshgrid(np.linspace(-2, 2, 201), np.linspace(-2, 2, 201), indexing="ij")
    p = sigmoid(a[..., None] + b[..., None] * feature)
    loss = -(scores * np.log(p) + (1 - scores) * np.log(1 - p)).sum(-1) + RIDGE * b**2 / 2
    best = np.unravel_index(loss.argmin(), loss.shape)
    assert fit(scores, feature) == pytest.approx((a[best], b[best]), abs=0.0101)  # half a step of the grid


def test_known_coefficients_come_back() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(30, 50, 200_000)
    truth = sigmoid(-0.4 + 1.5 * np.tanh(differences / differences.std()))
    scores = (rng.random(len(truth)) < truth).astype(float)
    assert scores.mean() > 0.52  # the raw rate says that the policy wins
    assert length_controlled(scores, differences) == pytest.approx(1 / (1 + math.exp(0.4)), abs=0.01)


def test_probabilities_are_fitted_exactly() -> None:
    differences = np.linspace(-80, 120, 2001)
    truth = sigmoid(0.3 - 0.8 * np.tanh(differences / differences.std()))
    rate = length_controlled(truth, differences)  # soft labels of the model itself: only the ridge moves it
    assert rate == pytest.approx(1 / (1 + math.exp(-0.3)), abs=1e-4)


def test_without_a_length_effect_it_is_the_raw_rate() -> None:
    differences = np.repeat([-30.0, -3.0, 8.0, 40.0], 5)
    scores = np.tile([1.0, 1.0, 0.5, 0.0, 1.0], 4)
    assert length_controlled(scores, differences) == pytest.approx(0.7, abs=1e-6)
    assert length_controlled(scores, np.zeros(20)) == 0.7


def test_separation_stays_finite() -> None:
    differences = np.concatenate([np.arange(1.0, 81), -np.arange(1.0, 21)])
    scores = (differences > 0).astype(float)  # the longer one always wins, and the policy's mostly is
    assert scores.mean() == 0.8
    assert length_controlled(scores, differences) == pytest.approx(0.5, abs=0.05)
    assert length_controlled(np.ones(100), differences) == pytest.approx(1.0, abs=1e-6)
    assert length_controlled(np.zeros(100), differences) == pytest.approx(0.0, abs=1e-6)


def test_sides_exchanged_give_the_complement() -> None:
    rng = np.random.default_rng(2)
    differences, scores = rng.normal(10, 20, 50), rng.choice([0, 0.5, 1.0], 50)
    there, back = length_controlled(scores, differences), length_controlled(1 - scores, -differences)
    assert there + back == pytest.approx(1.0, abs=1e-6)


def test_one_length_for_all_says_nothing() -> None:
    assert math.isnan(length_controlled(np.array([1.0, 0.0]), np.array([5.0, 5.0])))
    assert math.isnan(length_controlled(np.array([]), np.array([])))
