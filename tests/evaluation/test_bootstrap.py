"""Bootstrap intervals against the normal theory that they approximate, and clusters that count once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caldpo.evaluation.bootstrap import Bootstrap

RNG = np.random.default_rng(0)
VALUES = RNG.normal(3.0, 2.0, size=400)
BOOTSTRAP = Bootstrap(resamples=4000, seed=1)


def half_width(interval: dict) -> float:
    return (interval["high"] - interval["low"]) / 2


def test_the_mean_of_independent_values_has_the_normal_interval() -> None:
    interval = BOOTSTRAP.mean(VALUES, range(400))
    assert interval["value"] == pytest.approx(VALUES.mean())
    assert interval["n"] == 400
    assert half_width(interval) == pytest.approx(1.96 * VALUES.std(ddof=1) / 20, rel=0.06)
    assert (interval["high"] + interval["low"]) / 2 == pytest.approx(VALUES.mean(), abs=0.02)


def test_repeats_within_a_prompt_tell_nothing_new() -> None:
    once = BOOTSTRAP.mean(VALUES, range(400))
    repeated = BOOTSTRAP.mean(np.repeat(VALUES, 4), np.repeat(np.arange(400), 4).tolist())
    assert repeated["n"] == 1600
    assert half_width(repeated) == pytest.approx(half_width(once), rel=0.01)
    pretended = BOOTSTRAP.mean(np.repeat(VALUES, 4), range(1600))
    assert half_width(pretended) == pytest.approx(half_width(once) / 2, rel=0.1), "as if they were independent"


def test_a_wider_confidence_is_a_wider_interval() -> None:
    wide = Bootstrap(resamples=4000, confidence=0.99, seed=1).mean(VALUES, range(400))
    assert half_width(wide) / half_width(BOOTSTRAP.mean(VALUES, range(400))) == pytest.approx(2.576 / 1.96, rel=0.08)


def test_sums_and_choices_of_examples_agree() -> None:
    """The same ratio by sums of columns and by drawing examples: two ways to one interval."""
    x, y = VALUES, 0.5 * VALUES + RNG.normal(size=400)
    prompts = [i // 2 for i in range(400)]
    by_sums = BOOTSTRAP.of_sums(lambda xy, xx: xy / xx, (x * y, x * x), prompts)
    by_rows = BOOTSTRAP.of(lambda rows: float((x[rows] @ y[rows]) / (x[rows] @ x[rows])), prompts)
    assert by_sums["value"] == pytest.approx(by_rows["value"])
    assert (by_sums["low"], by_sums["high"]) == pytest.approx((by_rows["low"], by_rows["high"]))


def test_the_seed_decides() -> None:
    assert BOOTSTRAP.mean(VALUES, range(400)) == BOOTSTRAP.mean(VALUES, range(400))
    assert BOOTSTRAP.mean(VALUES, range(400)) != Bootstrap(resamples=4000, seed=2).mean(VALUES, range(400))


def test_one_prompt_has_no_interval_and_none_no_value() -> None:
    assert BOOTSTRAP.mean([1.0, 2.0], ["a", "a"]) == {"value": 1.5, "n": 2}
    nothing = BOOTSTRAP.mean([], [])
    assert nothing["n"] == 0
    assert math.isnan(nothing["value"])


def test_what_is_undefined_has_no_interval() -> None:
    interval = BOOTSTRAP.of(lambda rows: float("nan"), ["a", "b"])
    assert math.isnan(interval["value"])
    assert "low" not in interval
