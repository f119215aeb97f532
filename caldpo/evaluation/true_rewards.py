"""True rewards of texts, and who wins by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caldpo.data.raw_row import RewardSource

Values = NDArray[np.float64]


def wins(difference: Values) -> Values:
    """1 where a difference is above 0, 0 below, one half at 0."""
    return (difference > 0) + 0.5 * (difference == 0)


def true_rewards(data: Any, prompts: Sequence[str], responses: Sequence[str]) -> Values:
    """The true reward of each response to its prompt, by the source of ``data``: all at once where it can.

    Args:
        data: a data module whose ``oracle`` is not None.
        prompts: as text.
        responses: one to each prompt.
    """
    if isinstance(data.source, RewardSource):
        return np.asarray(data.source.rewards(prompts, responses), dtype=np.float64)
    return np.array([data.oracle(p, r) for p, r in zip(prompts, responses, strict=True)], dtype=np.float64)
