"""Compute bootstrap intervals over prompts, since pairs and samples of one prompt are not independent.

Percentile bootstrap over clusters (Efron & Tibshirani 1993, chapters 8 and 13), drawn by scipy: whole prompts are
drawn with replacement, each with all that belongs to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_MIN_DEFINED = 0.95  # share of resamples in which a statistic must be defined for an interval
Rows = NDArray[np.intp]  # indices of a resample's examples, with repeats


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the intervals. ``clusters`` is the prompt of each example throughout."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def mean(self, values: Sequence[float] | NDArray[Any], clusters: Sequence[Hashable]) -> dict[str, Any]:
        """Compute the mean with its interval, as keywords of a :class:`~caldpo.evaluation.suite_base.Measure`."""
        array = np.asarray(values, dtype=np.float64)
        return self.of_sums(lambda total, count: total / count, (array, np.ones_like(array)), clusters)

    def of_sums(
        self, statistic: Callable[..., Any], columns: Sequence[NDArray[Any]], clusters: Sequence[Hashable]
    ) -> dict[str, Any]:
        """Compute a statistic of sums over examples, with its interval, for all resamples at once.

        Args:
            statistic: of the sum of each column; also takes arrays of sums, one per resample.
            columns: values to sum, each ``(examples,)``.
            clusters: of the examples.
        """
        if not len(clusters):
            return {"value": float("nan"), "n": 0}
        _, group = _grouped(clusters)
        sums = tuple(np.bincount(group, weights=np.asarray(column, dtype=np.float64)) for column in columns)

        def resampled(*drawn: NDArray[Any], axis: int = -1) -> Any:
            return statistic(*(values.sum(axis=axis) for values in drawn))

        with np.errstate(divide="ignore", invalid="ignore"):  # all values of a resample may be equal
            value = float(statistic(*(values.sum() for values in sums)))
            return {"value": value, "n": len(clusters)} | self._interval(sums, resampled, vectorized=True)

    def of(
        self, statistic: Callable[[Rows], float], clusters: Sequence[Hashable], n: int | None = None
    ) -> dict[str, Any]:
        """Compute any statistic of chosen examples, with its interval; NaN where it is undefined.

        Args:
            statistic: of the examples at these indices, some of them repeated.
            clusters: of the examples.
            n: number of examples to report; None: all.
        """
        rows, _ = _grouped(clusters)
        everything = np.arange(len(clusters))
        value = float(statistic(everything)) if len(everything) else float("nan")

        def resampled(chosen: NDArray[Any]) -> float:
            return statistic(np.concatenate([rows[int(i)] for i in chosen]))

        result = {"value": value, "n": len(everything) if n is None else n}
        if not np.isfinite(value):
            return result
        return result | self._interval((np.arange(len(rows)),), resampled, vectorized=False)

    def _interval(self, data: tuple[NDArray[Any], ...], statistic: Any, *, vectorized: bool) -> dict[str, Any]:
        if len(data[0]) < 2:
            return {}  # a single prompt has no spread
        with warnings.catch_warnings():
            # a statistic that is equal in every resample has an interval of zero width, which is correct
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            bootstrap = stats.bootstrap(
                data,
                statistic,
                paired=True,
                vectorized=vectorized,
                n_resamples=self.resamples,
                batch=max(1, 5_000_000 // len(data[0])),
                confidence_level=self.confidence,
                method="percentile",
                rng=np.random.default_rng(self.seed),
            )
        drawn = bootstrap.bootstrap_distribution
        defined = drawn[np.isfinite(drawn)]
        if len(defined) < _MIN_DEFINED * len(drawn):
            return {}  # such as a correlation of so few prompts
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return {"low": float(low), "high": float(high)}


def _grouped(clusters: Sequence[Hashable]) -> tuple[list[NDArray[np.intp]], NDArray[np.intp]]:
    """Return the indices of each cluster's examples, and the number of each example's cluster."""
    number: dict[Hashable, int] = {}
    group = np.array([number.setdefault(key, len(number)) for key in clusters], dtype=np.intp)
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group, minlength=len(number)))[:-1]), group
