"""DPO-Shift: ``-log sigmoid(beta (a - lambda b))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. ``lambda`` (``shift``): the
weight of the rejected's reward; 1 is DPO, and less keeps the chosen's probability up at the price of margin.

Yang et al. 2025, "DPO-Shift: Shifting the Distribution of Direct Preference Optimization", arXiv 2502.07599, Eq. 3 with
the strategy "fixed". The paper's linear schedules are left out: a loss here does not see the step.
"""

from __future__ import annotations

from typing import ClassVar

from caldpo.config.bounds import Positive, PositiveFraction
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic
from caldpo.types import LossOutput, PairLogps


class DPOShift(PreferenceLoss):
    """DPO whose rejected reward is scaled down."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "ours: as dpo, whose settings the paper takes"),
        "shift": Range(0.5, 1.0, "the paper's 0.5 to 0.99; 1 is DPO, above it training broke down", log=False),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, shift: PositiveFraction = 0.95) -> None:
        super().__init__()
        self.beta, self.shift = beta, shift

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (a - {self.shift:g} b))"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = logistic(self.beta * (logps.chosen_log_ratio - self.shift * logps.rejected_log_ratio))
        return LossOutput(contrast, {"contrast": contrast})
