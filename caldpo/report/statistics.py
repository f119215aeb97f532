"""Means over seeds, their spread, and when a difference is more than spread. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LARGEST = 1e100  # that a figure can hold: room for squares and margins
DRAWN_POINTS = 2000  # of a curve that is drawn as it is
_PER_STRETCH = 4  # of a longer curve: 500 stretches, as many as a panel of 150 dots per inch has pixels
BandKind = Literal["range", "sd"]


@dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation (n - 1) over ``n`` seeds; ``sd`` is None for a single one."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Band:
    """A mean curve and its spread over ``n`` seeds; arrays of shape ``(steps,)``."""

    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and spread of one value per seed, None of none; a value that is not a number stays visible."""
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 1:
        return Estimate(float(array[0]), None, 1)
    # Equal values have a mean that is off by rounding, and a spread of that size: it is 0.
    if (array == array[0]).all():
        return Estimate(float(array[0]), 0.0, len(array))
    with np.errstate(all="ignore"):  # what is not finite, or too large for a square, shows in the result
        return Estimate(float(array.mean()), float(array.std(ddof=1)), len(array))


def band(curves: Sequence[Mapping[int, float]], kind: BandKind) -> Band | None:
    """Mean and band over the curves of several seeds, at the steps that all of them have.

    A mean over seeds that come and go along the axis would jump for no reason in the training.

    Args:
        curves: one per seed, optimiser step -> value.
        kind: ``range`` from the lowest to the highest seed, ``sd`` one standard deviation to either side.

    Returns:
        None when the curves share no step.
    """
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        return None
    values = np.array([[curve[step] for step in steps] for curve in curves], dtype=np.float64)
    values[~(np.abs(values) <= LARGEST)] = np.nan  # a gap
    mean = values.mean(axis=0)
    if kind == "range":
        low, high = values.min(axis=0), values.max(axis=0)
    else:
        spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(mean)
        low, high = mean - spread, mean + spread
    return Band(np.array(steps), mean, low, high, len(curves))


def thinned(curve: Band, points: int = DRAWN_POINTS) -> Band:
    """Leave out of a curve of more than ``points`` steps, as many as a figure shows, those that nobody could see.

    Its ends stay, and of each of ``points / 4`` stretches the first point, the extremes of mean and band, and a gap.
    """
    count = len(curve.steps)
    if count <= points:
        return curve
    edges = np.linspace(0, count, points // _PER_STRETCH + 1).astype(int)[:-1]
    gap = np.isnan(curve.mean)
    visible = [edges, np.array([count - 1])]
    for extreme, values in (
        (np.fmax, gap.astype(np.float64)),
        (np.fmin, curve.mean),
        (np.fmax, curve.mean),
        (np.fmin, curve.low),
        (np.fmax, curve.high),
    ):
        best = np.repeat(extreme.reduceat(values, edges), np.diff(np.append(edges, count)))
        places = np.flatnonzero(values == best)
        stretch = np.searchsorted(edges, places, side="right")
        visible.append(places[np.unique(stretch, return_index=True)[1]])
    kept = np.unique(np.concatenate(visible))
    return Band(curve.steps[kept], curve.mean[kept], curve.low[kept], curve.high[kept], curve.n)


def leader(estimates: Mapping[str, Estimate], better: Literal["higher", "lower"]) -> str | None:
    """The name whose mean beats every other by more than the pooled 95 % t interval of their difference.

    None where no name does, where a name has a single seed (its spread is unknown), or where there is
    nothing to compare with.
    """
    if len(estimates) < 2 or not all(math.isfinite(e.mean) for e in estimates.values()):
        return None
    sign = 1.0 if better == "higher" else -1.0
    best = max(estimates, key=lambda name: sign * estimates[name].mean)
    for name, other in estimates.items():
        if name == best:
            continue
        width = difference_interval(estimates[best], other)
        if width is None or not sign * (estimates[best].mean - other.mean) > width:
            return None
    return best


def clear_of_others(intervals: Mapping[str, tuple[float, float]], better: Literal["higher", "lower"]) -> str | None:
    """The name whose interval (low, high) lies wholly on the better side of every other's; None where there is none."""
    if len(intervals) < 2:
        return None
    sign = 1.0 if better == "higher" else -1.0
    worst = {name: min(sign * low, sign * high) for name, (low, high) in intervals.items()}
    best = max(worst, key=worst.__getitem__)
    others = (max(sign * low, sign * high) for name, (low, high) in intervals.items() if name != best)
    return best if all(worst[best] > other for other in others) else None


def mean_interval(value: Estimate) -> tuple[float, float] | None:
    """Ends of the two-sided 95 % interval of a mean over seeds (Student); None of a single seed."""
    if value.sd is None:
        return None
    width = float(stdtrit(value.n - 1, 0.975)) * value.sd / math.sqrt(value.n)
    return value.mean - width, value.mean + width


def difference_interval(a: Estimate, b: Estimate) -> float | None:
    """Half width of the two-sided 95 % interval of the difference of two means (Student, equal variances).

    None when either has a single value.
    """
    if a.sd is None or b.sd is None:
        return None
    df = a.n + b.n - 2
    pooled = ((a.n - 1) * a.sd**2 + (b.n - 1) * b.sd**2) / df
    return float(stdtrit(df, 0.975)) * math.sqrt(pooled * (1 / a.n + 1 / b.n))
