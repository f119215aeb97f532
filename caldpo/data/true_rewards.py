"""Compute true rewards of responses where the data's source knows them, and wins by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from caldpo.data.raw_row import RewardSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from caldpo.data.datamodule import PairDataModule

Values = NDArray[np.float64]


@runtime_checkable
class ExactSource(Protocol):
    """A source that knows expected reward and KL of a policy without sampling."""

    def exact_metrics(self, policy: PreTrainedModel, reference: PreTrainedModel, beta: float) -> dict[str, float]:
        """Return sums over the whole distribution, by name; ``beta`` is the reward per nat of log-ratio."""
        ...


def wins(difference: Values) -> Values:
    """Return 1 where a difference is above 0, 0 below, one half at 0."""
    return (difference > 0) + 0.5 * (difference == 0)


def true_rewards(data: PairDataModule, prompts: Sequence[str], responses: Sequence[str]) -> Values:
    """Compute the true reward of each response to its prompt, for data whose source is a :class:`RewardSource`."""
    assert isinstance(data.source, RewardSource)
    return np.asarray(data.source.rewards(prompts, responses), dtype=np.float64)
