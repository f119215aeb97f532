"""Check that scores mean what a loss reads them as."""

from __future__ import annotations

import numpy as np

from caldpo.data.stored_pairs import StoredPairs
from caldpo.errors import CaldpoError
from caldpo.utils.text_format import counted


def is_within(scores: tuple[float | None, float | None], score_range: tuple[float, float] | None) -> bool:
    """Tell whether those of a pair's scores that there are lie in a range; None: any do."""
    return score_range is None or all(score is None or score_range[0] <= score <= score_range[1] for score in scores)


def require_score_range(pairs: StoredPairs, split: str, loss_name: str, score_range: tuple[float, float]) -> None:
    """Refuse scores outside the range that the loss reads them in.

    Raises:
        CaldpoError: with the first row and the extremes of all scores.
    """
    scores, (low, high) = pairs.scores(), score_range
    outside = np.flatnonzero(((scores < low) | (scores > high)).any(axis=1))  # those that are absent are no numbers
    if len(outside):
        raise CaldpoError(
            f"loss {loss_name} reads scores from {low:g} to {high:g}, and {len(outside):,} of "
            f"{counted(len(pairs), 'pair')} of {split} have others (from {np.nanmin(scores):g} to "
            f"{np.nanmax(scores):g}), first {pairs.origin(int(outside[0]))}",
            key="loss",
            value=loss_name,
            remedy="with the embedded reviews add data.source.scores=quantiles; in your own data replace each score "
            "with its quantile: the share of the reference's own responses to the prompt that do not score higher. "
            "Or take a loss that reads rewards, such as cal_dpo with loss.targets=scores",
        )
