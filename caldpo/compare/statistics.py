"""Means over seeds, their spread, and when a difference is more than spread. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
    equal = bool((array == array[0]).all())
    return Estimate(float(array[0] if equal else array.mean()), 0.0 if equal else float(array.std(ddof=1)), len(array))


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
    mean = values.mean(axis=0)
    if kind == "range":
        low, high = values.min(axis=0), values.max(axis=0)
    else:
        spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(mean)
        low, high = mean - spread, mean + spread
    return Band(np.array(steps), mean, low, high, len(curves))


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


def difference_interval(a: Estimate, b: Estimate) -> float | None:
    """Half width of the two-sided 95 % interval of the difference of two means (Student, equal variances).

    None when either has a single value.
    """
    if a.sd is None or b.sd is None:
        return None
    df = a.n + b.n - 2
    pooled = ((a.n - 1) * a.sd**2 + (b.n - 1) * b.sd**2) / df
    return t_quantile(0.975, df) * math.sqrt(pooled * (1 / a.n + 1 / b.n))


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t for ``0.5 <= p < 1``, by bisection of its distribution function."""
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, df: int) -> float:
    """Distribution function of Student's t for ``t >= 0`` and a whole number of degrees of freedom.

    Abramowitz & Stegun 1964, 26.7.3 and 26.7.4: finite sums, exact up to rounding.
    """
    theta = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    if df % 2:
        term, total = cosine, 0.0
        for k in range(1, df - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        inside = 2 / math.pi * (theta + sine * total)
    else:
        term, total = 1.0, 0.0
        for k in range(0, df - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        inside = sine * total
    return 0.5 + inside / 2
