"""BPO (balanced): ``-log sigmoid(beta min(a, -k b))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. Only the worse of the two
is pushed, so that a falling rejected cannot pay for a falling chosen. ``k``, the paper's gap adaptor, alpha, in (0, 1]:
below 1 it asks the rejected to fall further, ``-b = a / k``. At policy = reference both are equal and each gets half of
the gradient.

Sun et al. 2025, "BPO: Revisiting Preference Modeling in Direct Preference Optimization", arXiv 2506.03557, Eq. 5 with
the logistic loss.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from caldpo.config.bounds import Positive, PositiveFraction
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic
from caldpo.types import LossOutput, PairLogps


class BPO(PreferenceLoss):
    """Logistic loss on the smaller of the chosen's reward and the rejected's, negated."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "around the authors' 0.1; ours: as dpo"),
        "k": Range(0.1, 1.0, "the paper's (0, 1], over the authors' 0.3"),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, k: PositiveFraction = 0.3) -> None:
        super().__init__()
        self.beta, self.k = beta, k

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} min(a, -{self.k:g} b))"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = logistic(self.beta * torch.minimum(logps.chosen_log_ratio, -self.k * logps.rejected_log_ratio))
        return LossOutput(contrast, {"contrast": contrast})
