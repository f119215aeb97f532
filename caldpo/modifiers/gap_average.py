"""Running mean and standard deviation of the gap ``a - b`` over the pairs of each optimiser step, nats.

As in the repository of beta-DPO (junkangwu/beta-DPO, trainers.py): both start at 0 and take a share of 0.1 of each
step's value, that of the current step included before they are used; the step's standard deviation is that of a sample
(0 of a single pair).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.losses.exact_buffers import ExactBuffers
from caldpo.types import PairLogps

KEPT = "kept"
"""Name of the statistic of ``gap_filter``: 0 for pairs that it leaves out, for others the factor that makes the mean
over all pairs of the step the mean over them."""


class GapAverage(ExactBuffers):
    """Buffers of the averages, float64: they are in checkpoints."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("deviation", torch.zeros((), dtype=torch.float64))

    def after(self, gaps: Float[Tensor, " pairs"]) -> dict[str, Tensor]:
        """Compute the averages after a step with these gaps, by the buffers' names; a non-finite step changes none."""
        gaps = gaps.double()
        spread = gaps.std() if len(gaps) > 1 else torch.zeros_like(self.deviation)
        new = {"mean": self._moved(self.mean, gaps.mean()), "deviation": self._moved(self.deviation, spread)}
        finite = torch.stack(list(new.values())).isfinite().all()
        return {name: torch.where(finite, value, getattr(self, name)) for name, value in new.items()}

    def _moved(self, before: Tensor, value: Tensor) -> Tensor:
        return self.momentum * before + (1 - self.momentum) * value


def gaps_of(logps: PairLogps) -> Float[Tensor, " pairs"]:
    """``a - b``, without gradient."""
    return (logps.chosen_log_ratio - logps.rejected_log_ratio).detach()
