"""Bootstrap intervals whose unit is the prompt: pairs and samples of one prompt are not independent.

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

_MOSTLY = 0.95  # share of resamples in which a statistic has to be defined for an interval over those
Rows = NDArray[np.intp]  # which examples a resample has, repeats included


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    Args:
        resamples: draws of whole prompts.
        confidence: share of resamples that the interval holds.
        seed: of the draws.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def mean(self, values: Sequence[float] | NDArray[Any], clusters: Sequence[Hashable]) -> dict[str, Any]:
        """Mean of all values with its interval, as keywords of a :class:`~caldpo.evaluation.suite_result.Measure`.

        Args:
            values: one per example.
            clusters: the prompt of each, which is drawn as a whole.
        """
        array = np.asarray(values, dtype=np.float64)
        return self.of_sums(lambda total, count: total / count, (array, np.ones_like(array)), clusters)

    def of_sums(
        self, statistic: Callable[..., Any], columns: Sequence[NDArray[Any]], clusters: Sequence[Hashable]
    ) -> dict[str, Any]:
        """A statistic of sums over examples, with its interval: of all resamples at once.

        Args:
            statistic: of the sum of each column; takes arrays of sums, one per resample, as well.
            columns: values whose sums are needed, each ``(examples,)``.
            clusters: the prompt of each example.
        """
        if not len(clusters):
            return {"value": float("nan"), "n": 0}
        _, group = _grouped(clusters)
        sums = tuple(np.bincount(group, weights=np.asarray(column, dtype=np.float64)) for column in columns)

        def resampled(*drawn: NDArray[Any], axis: int = -1) -> Any:
            return statistic(*(values.sum(axis=axis) for values in drawn))

        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold equal values alone
            value = float(statistic(*(values.sum() for values in sums)))
            return {"value": value, "n": len(clusters)} | self._interval(sums, resampled, vectorized=True)

    def of(
        self, statistic: Callable[[Rows], float], clusters: Sequence[Hashable], n: int | None = None
    ) -> dict[str, Any]:
        """Any statistic of a choice of examples, with its interval; not a number where it is undefined.

        Args:
            statistic: of the examples at these places, some of them repeated.
            clusters: the prompt of each example.
            n: examples that the statistic is of; None: all.
        """
        rows, _ = _grouped(clusters)
        everything = np.arange(len(clusters))
        value = float(statistic(everything)) if len(everything) else float("nan")

        def resampled(chosen: NDArray[Any]) -> float:
            return statistic(np.concatenate([rows[int(i)] for i in chosen]))

        found = {"value": value, "n": len(everything) if n is None else n}
        if not np.isfinite(value):
            return found
        return found | self._interval((np.arange(len(rows)),), resampled, vectorized=False)

    def _interval(self, data: tuple[NDArray[Any], ...], statistic: Any, *, vectorized: bool) -> dict[str, Any]:
        if len(data[0]) < 2:
            return {}  # a single prompt says nothing about others
        with warnings.catch_warnings():
            # a statistic that is the same in every resample has an interval of no width, which is no fault
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
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
        drawn = found.bootstrap_distribution
        defined = drawn[np.isfinite(drawn)]
        if len(defined) < _MOSTLY * len(drawn):
            return {}  # a correlation, say, that most choices of so few prompts leave undefined
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return {"low": float(low), "high": float(high)}


def _grouped(clusters: Sequence[Hashable]) -> tuple[list[NDArray[np.intp]], NDArray[np.intp]]:
    """The places of each cluster's examples, and the number of each example's cluster."""
    number: dict[Hashable, int] = {}
    group = np.array([number.setdefault(key, len(number)) for key in clusters], dtype=np.intp)
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group, minlength=len(number)))[:-1]), group
