"""Minor DPO: ``-log sigmoid(beta (a - relu(b)))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. A rejected response that is
already less likely than under the reference is pushed down no further; at the start, where ``b`` is 0, none is.

Xie et al. 2024, "Minor DPO reject penalty to increase training robustness", arXiv 2408.09834.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic
from caldpo.types import LossOutput, PairLogps


class MinorDPO(PreferenceLoss):
    """DPO that leaves a rejected response alone once it is below the reference."""

    search_space: ClassVar[SearchSpace] = {"beta": Range(3e-3, 1.0, "ours: as dpo")}

    @validated
    def __init__(self, beta: Positive = 0.1) -> None:
        super().__init__()
        self.beta = beta

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (a - relu(b)))"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = logistic(self.beta * (logps.chosen_log_ratio - F.relu(logps.rejected_log_ratio)))
        return LossOutput(contrast, {"contrast": contrast})
