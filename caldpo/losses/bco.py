"""BCO: ``-log sigmoid(beta a - delta) - log sigmoid(-(beta b - delta))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. ``delta``: the reward
shift, the mean of the chosen's and the rejected's mean reward ``beta log-ratio`` over all responses of the run so far,
those of the current optimiser step included, without gradient. It is 0 before the first step; held-out pairs get that
of the training steps so far, and do not change it.

Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", arXiv 2404.04656; the running
mean as in TRL's earlier releases, which updated it at every micro-batch of each device. The
``bco_pair`` of TRL 1.16 has ``delta = 0``. Without the paper's weights for prompts of unlike distributions (UDM).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.pointwise import PointwiseLoss, sum_and_count
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic
from caldpo.types import LossOutput, PairLogps, StepStatistics

SHIFT = "bco_shift"


class BCO(PointwiseLoss):
    """A classifier of responses whose logit is the implicit reward, less its mean."""

    depends_on_batch = True
    search_space: ClassVar[SearchSpace] = {"beta": Range(0.003, 1, "ours: as DPO's; the paper has 0.01")}
    rewards: Tensor  # float64, (2, 2): sum and number of the rewards so far, of chosen and of rejected responses

    @validated
    def __init__(self, beta: Positive = 0.01) -> None:
        super().__init__()
        self.beta = beta
        self.register_buffer("rewards", torch.zeros(2, 2, dtype=torch.float64))

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} a - delta) - logsigmoid(delta - {self.beta:g} b)"

    def observe(self, step: PairLogps, mismatched: PairLogps | None = None, *, training: bool = True) -> StepStatistics:
        after = self.rewards.to(step.policy_chosen.device)
        if training:
            a, b = self.beta * step.chosen_log_ratio, self.beta * step.rejected_log_ratio
            added = [sum_and_count(a, step.chosen_present), sum_and_count(b, step.rejected_present)]
            after = after + torch.stack(added)
        sums, counts = after.unbind(dim=1)
        shift = (sums / counts.clamp_min(1)).sum() / (counts > 0).sum().clamp_min(1)
        # a step that is not finite is not remembered
        state = torch.where(after.isfinite().all(), after, self.rewards.to(after))
        return StepStatistics({SHIFT: shift.to(step.policy_chosen).expand_as(step.policy_chosen)}, {"rewards": state})

    def chosen_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return logistic(self.beta * logps.chosen_log_ratio - self.of_step(logps)[SHIFT])

    def rejected_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return logistic(self.of_step(logps)[SHIFT] - self.beta * logps.rejected_log_ratio)

    def forward(self, logps: PairLogps) -> LossOutput:
        return replace(super().forward(logps), diagnostics={"shift": self.of_step(logps)[SHIFT]})
