"""RSO (hinge): ``relu(1 - beta (a - b))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. SLiC's hinge
taken relative to the reference; other trainers offer it as "hinge".

Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", arXiv 2309.06657; the
loss only, without the paper's rejection sampling of the data.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap
from caldpo.types import LossOutput, PairLogps


class RSO(PreferenceLoss):
    """Hinge on the margin of implicit rewards."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-3, 1.0, "ours: as dpo, over the paper's 0.05 (as TRL's index has it)")
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
        return f"relu(1 - {self.beta:g} (a - b))"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = F.relu(1 - self.beta * log_ratio_gap(logps, per_token=False))
        return LossOutput(contrast, {"contrast": contrast})
