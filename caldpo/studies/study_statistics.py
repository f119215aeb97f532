"""Statistics of rows that share seeds: intervals, paired differences, ranks, power. Pure functions of numbers.

A value array of a row is ``(seeds, prompts)``; a measure of a whole run has one column. Rows are paired: entries
``[s, p]`` of one and of another are the same seed and the same prompt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Values = NDArray[np.float64]
_BATCH = 250  # resamples at a time: a few MB
_GRID = 4000  # quantiles of the observed sd over which power is averaged


def resampled_means(values: Values, resamples: int, seed: int) -> Values:
    """Means of hierarchical resamples, ``(resamples,)``: seeds with replacement, then prompts within each drawn seed.

    Davison & Hinkley 1997, section 3.8, with replacement at both levels. The same ``seed`` draws the same seeds and
    prompts for every row of one shape, so that differences of rows are paired.
    """
    seeds, prompts = values.shape
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, _BATCH):
        count = min(_BATCH, resamples - start)
        rows = rng.integers(seeds, size=(count, seeds, 1))
        columns = rng.integers(prompts, size=(count, seeds, prompts))
        means[start : start + count] = values[rows, columns].mean(axis=(1, 2))
    return means


def interval(values: Values, resamples: int, seed: int = 0, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over seeds and prompts."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled_means(values, resamples, seed), [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """Of one row and a baseline: mean, interval, and the p-value of a paired t test over seeds."""

    mean: float
    low: float
    high: float
    p: float  # not corrected; NaN with a single seed
    sd: float  # of the difference over seeds
    seeds: int


def paired_difference(row: Values, baseline: Values, resamples: int, seed: int = 0) -> Difference:
    """Compare rows seed by seed. The test has a value per seed: prompts of one run are not independent runs."""
    difference = row - baseline
    by_seed = difference.mean(axis=1)
    low, high = interval(difference, resamples, seed)
    sd = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")
    return Difference(float(by_seed.mean()), low, high, _paired_p(by_seed), sd, len(by_seed))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979); NaN stays, and is not counted."""
    p = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return [float(value) for value in adjusted]


def probability_of_best(rows: Mapping[str, Values], resamples: int, seed: int = 0) -> dict[str, float]:
    """Share of hierarchical resamples in which a row has the highest mean; equal ones share it."""
    means = np.stack([resampled_means(values, resamples, seed) for values in rows.values()])
    best = means == means.max(axis=0)
    return dict(zip(rows, (best / best.sum(axis=0)).mean(axis=1).tolist(), strict=True))


@dataclass(frozen=True)
class Ranking:
    """Average ranks over blocks, 1 is best, and how far apart they have to be."""

    ranks: Mapping[str, float]
    friedman_p: float  # of all rows being alike
    critical_difference: float  # of two average ranks, Nemenyi at 5 %
    blocks: int


def ranking(blocks: Mapping[str, Sequence[float]]) -> Ranking | None:
    """Rank rows within each block, higher is better (Demsar 2006, JMLR 7, sections 3.2.2 and 3.2.3).

    Args:
        blocks: of each row, a value per block (condition x seed), in one order.

    Returns:
        None with fewer than three rows or two blocks, of which Friedman's test says nothing.
    """
    table = np.array(list(blocks.values()), dtype=np.float64)  # (rows, blocks)
    rows, count = table.shape if table.ndim == 2 else (0, 0)
    if rows < 3 or count < 2:
        return None
    ranks = stats.rankdata(-table, axis=0).mean(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # all rows equal in every block
        p = float(stats.friedmanchisquare(*table).pvalue)
    q = float(stats.studentized_range.ppf(0.95, rows, np.inf)) / math.sqrt(2)
    critical = q * math.sqrt(rows * (rows + 1) / (6 * count))
    return Ranking(dict(zip(blocks, ranks.tolist(), strict=True)), p, critical, count)


def cliques(of: Ranking) -> list[tuple[str, ...]]:
    """List the groups, as large as possible, whose average ranks differ by less than the critical difference."""
    ordered = sorted(of.ranks, key=lambda name: of.ranks[name])
    found: list[tuple[str, ...]] = []
    for start, name in enumerate(ordered):
        near = [o for o in ordered[start:] if of.ranks[o] - of.ranks[name] < of.critical_difference]
        group = tuple(near)
        if len(group) > 1 and not any(set(group) <= set(larger) for larger in found):
            found.append(group)
    return found


def detectable_difference(sd: float, seeds: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true difference that a two-sided paired t test finds with this probability.

    Args:
        sd: of the paired difference over seeds.
        seeds: number of them, at least 2.
        alpha: level of the test, such as 0.05 over the number of comparisons.
    """
    if seeds < 2 or not math.isfinite(sd):
        return float("nan")
    df, root = seeds - 1, math.sqrt(seeds)
    threshold = stats.t.ppf(1 - alpha / 2, df)
    # the noncentral t distribution as a mixture over the observed sd; scipy's own overflows with few seeds
    spread = threshold * np.sqrt(stats.chi2.ppf((np.arange(_GRID) + 0.5) / _GRID, df) / df)

    def missing(effect: float) -> float:  # effect: difference over sd
        reached = special.ndtr(effect * root - spread) + special.ndtr(-effect * root - spread)
        return float(reached.mean()) - power

    upper = 1.0
    while missing(upper) < 0:
        upper *= 2
    return sd * float(optimize.brentq(missing, 0.0, upper))


def reward_at_kl(frontier: Sequence[Mapping[str, float | None]], kl: float) -> float:
    """Interpolate the true reward of a run at ``kl`` nats, where its path first reaches it; NaN where it never does.

    Linear in the square root of KL, in which reward is nearly so near the reference (Gao et al. 2022, arXiv 2210.10760,
    section 2.1). A line in KL would put a run whose first evaluation is far out below one that moves in small steps.

    Args:
        frontier: points of the path from the reference (KL 0) on, each with ``kl`` and ``reward``; None: not finite.
    """
    path = np.array([[point["kl"], point["reward"]] for point in frontier], dtype=np.float64)  # None: NaN
    for (kl_before, before), (kl_after, after) in itertools.pairwise(path):
        if kl_before < kl <= kl_after:
            start, end = (math.sqrt(max(value, 0.0)) for value in (kl_before, kl_after))  # estimates may be below 0
            return float(before + (math.sqrt(kl) - start) / (end - start) * (after - before))
    return float("nan")


def _paired_p(by_seed: Values) -> float:
    if len(by_seed) < 2 or not np.isfinite(by_seed).all():
        return float("nan")
    if (by_seed == by_seed[0]).all():  # no spread: the same runs, or a constant gap
        return 1.0 if by_seed[0] == 0 else 0.0
    return float(stats.ttest_1samp(by_seed, 0.0).pvalue)
