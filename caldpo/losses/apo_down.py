"""APO-down: ``sigmoid(beta a) + 1 - sigmoid(beta (a - b))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. For chosen responses that
are worse than what the model writes: pushes both below the reference, the rejected further. At policy = reference
the chosen is not pushed at all.

D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions", arXiv 2408.06266, Eq. 8.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap
from caldpo.types import LossOutput, PairLogps


class APODown(PreferenceLoss):
    """Both below the reference, the rejected further than the chosen."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-3, 1.0, "as apo_zero, ours: nothing is published but the authors' 0.1")
    }

    @validated
    def __init__(self, beta: Positive = 0.1) -> None:
        super().__init__()
        self.beta = beta

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"sigmoid({self.beta:g} a) + 1 - sigmoid({self.beta:g} (a - b))"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = torch.sigmoid(-self.beta * log_ratio_gap(logps, per_token=False))
        contrast = contrast + torch.sigmoid(self.beta * logps.chosen_log_ratio)
        return LossOutput(contrast, {"contrast": contrast})
