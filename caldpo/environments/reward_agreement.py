"""Measure how well implicit rewards, beta times the log-ratio, match true rewards.

A reward model is known up to a constant per prompt (the log-partition), so both sides are first centred within
each prompt. The rest can be compared on one scale: a slope of 1 is a calibrated reward.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]


def reward_agreement(
    implicit: Sequence[float], true: Sequence[float], prompt_ids: Sequence[Hashable]
) -> dict[str, float]:
    """Compute :func:`agreement_of_centred` after centring within prompts; those with one response do not count."""
    x, y, compared = centred(implicit, true, prompt_ids)
    return agreement_of_centred(x[compared], y[compared])


def centred(
    implicit: Sequence[float] | Values, true: Sequence[float] | Values, prompt_ids: Sequence[Hashable]
) -> tuple[Values, Values, NDArray[np.bool_]]:
    """Centre true and implicit rewards within each prompt, and mark responses of prompts with several."""
    if not len(implicit) == len(true) == len(prompt_ids):
        raise ValueError(f"{len(implicit)} implicit, {len(true)} true rewards, {len(prompt_ids)} prompts")
    number: dict[Hashable, int] = {}
    group = np.array([number.setdefault(p, len(number)) for p in prompt_ids], dtype=np.intp)
    counts = np.bincount(group, minlength=len(number))
    sides = [np.asarray(values, dtype=np.float64) for values in (true, implicit)]
    x, y = (v - (np.bincount(group, weights=v, minlength=len(number)) / np.maximum(counts, 1))[group] for v in sides)
    return x, y, counts[group] > 1


def agreement_of_centred(true: Values, implicit: Values) -> dict[str, float]:
    """Compute the agreement of rewards that are centred within prompts.

    Returns:
        ``slope``: of the least-squares line of implicit on true; 1 is calibrated, below 1 compressed.
        ``pearson``, ``spearman``: their correlations. ``error``: mean absolute difference. All are NaN where they are
        undefined: no prompt has two responses, or (but for the error) one side does not vary.
    """
    if not len(true):
        return dict.fromkeys(("slope", "pearson", "spearman", "error"), float("nan"))
    error = float(np.abs(implicit - true).mean())
    if not (varies(true) and varies(implicit)):
        slope = 0.0 if varies(true) else float("nan")
        return {"slope": slope, "pearson": float("nan"), "spearman": float("nan"), "error": error}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return {
            "slope": float(stats.linregress(true, implicit).slope),
            "pearson": float(stats.pearsonr(true, implicit).statistic),
            "spearman": rank_correlation(true, implicit),
            "error": error,
        }


def rank_correlation(x: Values, y: Values) -> float:
    """Compute Spearman's rho; NaN where one side does not vary.

    Values are rounded to nine decimals: equal rewards of two prompts are parted by the last digits of their means, and
    are ties all the same.
    """
    if not (varies(x) and varies(y)):
        return float("nan")
    return float(stats.spearmanr(x.round(9), y.round(9)).statistic)


def wins(difference: Values) -> Values:
    """Return 1 where a difference is above 0, 0 below, one half at 0."""
    return (difference > 0) + 0.5 * (difference == 0)


def varies(values: Values) -> bool:
    """Whether values vary, so that a correlation is defined."""
    return len(values) > 1 and bool((values != values[0]).any())
