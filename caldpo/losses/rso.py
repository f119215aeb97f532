"""RSO (hinge): ``relu(1 - beta (a - b))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. SLiC's hinge
taken relative to the reference; other trainers offer it as "hinge".

Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", arXiv 2309.06657; the
loss only, without the paper's rejection sampling of the data.
"""

from __future__ import annotations

import torch.nn.functional as F

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.terms import log_ratio_gap
from caldpo.types import LossOutput, PairLogps


class RSO(PreferenceLoss):
    """Hinge on the margin of implicit rewards."""

    @validated
    def __init__(self, beta: Positive = 0.1) -> None:
        super().__init__()
        self.beta = beta

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"relu(1 - {self.beta:g} (a - b))"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = F.relu(1 - self.beta * log_ratio_gap(logps, per_token=False))
        return LossOutput(contrast, {"contrast": contrast})
