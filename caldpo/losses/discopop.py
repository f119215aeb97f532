"""DiscoPOP: ``sigmoid(-m / tau) (-log sigmoid(m)) + sigmoid(m / tau) exp(-m)``, ``m = beta (a - b)``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. Found by a language model's
search over losses: logistic at negative margins, exponential at positive ones, ``tau`` being the width of the change.
It is neither convex nor monotone: at ``m = 0`` its slope is ``(1 - ln 2) / (4 tau) - 3/4``, which is +0.78 at the
published tau of 0.05. There the loss has a minimum at ``a - b = -2.4`` nats and a maximum at 1.4, so that from policy =
reference each pair is drawn to the wrong side until other pairs carry it over the maximum. Above ``tau = 1`` the
exponential would grow without bound at negative margins, so that is refused.

Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large Language Models", arXiv 2406.08414,
Eq. 5 (log-ratio modulated loss).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

from caldpo.config.bounds import Positive, PositiveFraction
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class DiscoPOP(PreferenceLoss):
    """Logistic and exponential loss, mixed by the margin."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "around the paper's 0.05; ours: as dpo"),
        "tau": Range(0.01, 1.0, "around the paper's 0.05; ours up to 1: from 0.103 on the first step is right"),
    }

    @validated
    def __init__(self, beta: Positive = 0.05, tau: PositiveFraction = 0.05) -> None:
        super().__init__()
        self.beta, self.tau = beta, tau

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        t = f"{self.tau:g}"
        return f"sigmoid(-m/{t}) (-logsigmoid(m)) + sigmoid(m/{t}) exp(-m), m = {self.beta:g} (a - b)"

    def forward(self, logps: PairLogps) -> LossOutput:
        margin = self.beta * log_ratio_gap(logps, per_token=False)
        # the product in one exponential: exp(-margin) alone overflows where its weight is 0
        exponential = torch.exp(F.logsigmoid(margin / self.tau) - margin)
        contrast = torch.sigmoid(-margin / self.tau) * logistic(margin) + exponential
        return LossOutput(contrast, {"contrast": contrast})
