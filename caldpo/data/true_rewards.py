"""True rewards of responses, and wins by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from caldpo.data.raw_row import RewardSource

if TYPE_CHECKING:
    from caldpo.data.datamodule import PairDataModule

Values = NDArray[np.float64]


def wins(difference: Values) -> Values:
    """Return 1 where a difference is above 0, 0 below, one half at 0."""
    return (difference > 0) + 0.5 * (difference == 0)


def true_rewards(data: PairDataModule, prompts: Sequence[str], responses: Sequence[str]) -> Values:
    """Compute the true reward of each response to its prompt.

    Args:
        data: whose source knows true rewards.
        prompts: as text.
        responses: one to each prompt.
    """
    assert isinstance(data.source, RewardSource), "asked only where data.oracle is not None"
    return np.asarray(data.source.rewards(prompts, responses), dtype=np.float64)
