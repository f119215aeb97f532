"""DPO-Positive (Smaug): ``-log sigmoid(beta (a - b - lambda relu(-a)))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. ``lambda``: weight of the
penalty on a chosen response that is less likely than under the reference; 0 is DPO. The penalty belongs to the loss
and not to the reward: a response has it only where it was chosen.

Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", arXiv 2402.13228.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from caldpo.config.bounds import NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class DPOP(PreferenceLoss):
    """DPO that penalises a chosen response below the reference."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "over the paper's 0.1, 0.3 and 1.0; ours below, as dpo"),
        "penalty_weight": Range(1.0, 500.0, "over the paper's 5, 50 and 500, and oxRL's 5; ours from 1"),
    }

    @validated
    def __init__(self, beta: Positive = 0.3, penalty_weight: NonNegative = 50.0) -> None:
        super().__init__()
        self.beta, self.penalty_weight = beta, penalty_weight

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (a - b - {self.penalty_weight:g} relu(-a)))"

    def forward(self, logps: PairLogps) -> LossOutput:
        penalty = self.penalty_weight * F.relu(-logps.chosen_log_ratio)
        contrast = logistic(self.beta * (log_ratio_gap(logps, per_token=False) - penalty))
        return LossOutput(contrast, {"contrast": contrast})
