"""C2-DPO: ``-log sigmoid(beta (a - b)) + weight (a + b)^2``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. The penalty holds their sum
at 0: what the chosen response gains the rejected one loses, and both cannot fall together.

Asadi et al. 2025, "C2-DPO: Constrained Controlled Direct Preference Optimization", arXiv 2502.17507; of its variants
the squared penalty on log-ratios, which oxRL has, too (github.com/warlockee/oxRL, oxrl/algs/c2dpo.py).
"""

from __future__ import annotations

from typing import ClassVar

from caldpo.config.bounds import NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class C2DPO(PreferenceLoss):
    """DPO with a penalty on the sum of both log-ratios."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-3, 1.0, "ours: as dpo"),
        "constraint_weight": Range(1e-5, 0.1, "oxRL, after the paper: 2e-4; ours: up to 0.1, for sums of few nats"),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, constraint_weight: NonNegative = 2e-4) -> None:
        super().__init__()
        self.beta, self.constraint_weight = beta, constraint_weight

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (a - b)) + {self.constraint_weight:g} (a + b)^2"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = logistic(self.beta * log_ratio_gap(logps, per_token=False))
        constraint = self.constraint_weight * (logps.chosen_log_ratio + logps.rejected_log_ratio) ** 2
        return LossOutput(contrast + constraint, {"contrast": contrast, "constraint": constraint})
