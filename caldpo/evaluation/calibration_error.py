"""Measure whether ``sigmoid(beta margin)`` is the probability of preference that it claims to be.

Under Bradley-Terry and an implicit reward ``beta log(pi/pi_ref)``, a policy claims that the chosen response is the
preferred one with probability ``p = sigmoid(beta (a - b))`` (Rafailov et al. 2023, Eq. 6). Which response is called
the first is arbitrary, so every pair counts in both orders, as (p, preferred) and (1 - p, not preferred): the curve is
point-symmetric about (1/2, 1/2), and a policy that equals its reference is perfectly calibrated at 1/2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Values = NDArray[np.float64]


def calibration_error(margins: Values, bins: int) -> float:
    """Compute the expected calibration error: mean distance of claimed from observed frequency, weighted by pairs.

    Guo et al. 2017 (arXiv 1706.04599), Eq. 3, over bins of equal width. A probability of exactly 1 is in the last bin;
    torchmetrics has a bin of its own for it. ``margins``: reward of the preferred minus that of the other response.
    """
    claimed, true = _both_orders(margins)
    gaps = np.bincount(_bin_of(claimed, bins), claimed - true, minlength=bins)  # summed over the pairs of each bin
    return float(np.abs(gaps).sum() / len(claimed)) if len(claimed) else float("nan")


def expected_error(margins: Values, bins: int, seed: int, draws: int = 200) -> float:
    """Compute the mean calibration error of these claims if all were true, with labels drawn from the claims.

    The error is a sum of absolute differences, so that it is above 0 for any policy with few pairs per bin. The signs
    of ``margins``, the labels, do not matter.
    """
    rng = np.random.default_rng(seed)
    sizes = np.abs(np.asarray(margins, dtype=np.float64))
    likelier = expit(sizes)
    errors = [calibration_error(np.where(rng.random(len(sizes)) < likelier, sizes, -sizes), bins) for _ in range(draws)]
    return float(np.mean(errors))


def reliability_curve(margins: Values, bins: int) -> list[dict[str, Any]]:
    """Return claimed and observed frequency of each bin that has pairs; ``count`` has both orders of a pair."""
    claimed, true = _both_orders(margins)
    edges = np.linspace(0, 1, bins + 1)
    bin_of = _bin_of(claimed, bins)
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "claimed": float(claimed[bin_of == i].mean()),
            "observed": float(true[bin_of == i].mean()),
            "count": int((bin_of == i).sum()),
        }
        for i in range(bins)
        if (bin_of == i).any()
    ]


def _bin_of(claimed: Values, bins: int) -> NDArray[np.intp]:
    """Return the bin of each probability: a lower edge belongs to its bin, and 1 to the last one."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, claimed, side="right") - 1, 0, bins - 1)


def _both_orders(margins: Values) -> tuple[Values, Values]:
    p = expit(np.asarray(margins, dtype=np.float64))
    return np.concatenate([p, 1 - p]), np.concatenate([np.ones_like(p), np.zeros_like(p)])
