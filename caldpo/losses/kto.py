"""KTO: ``w_d (1 - sigmoid(beta (a - z))) + w_u (1 - sigmoid(beta (z - b)))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. ``w_d``, ``w_u``: weights
of desirable and undesirable responses. ``z``: the reference point, ``max(0, mean log-ratio of mismatched responses)``
over the optimiser step, without gradient: an estimate of KL(policy || reference), nats. Mismatched are the prompt of
each row and both responses of the step's next row (cyclic, as in the paper), cut to the maximal length. A step of one
row has none, and ``z = 0``.

At policy = reference ``z = 0`` and the loss is ``(w_d + w_u) / 2``; the gradient vanishes for a log-ratio far from z on
either side. The paper averages over responses, this is the sum of a pair's two terms: twice as much for paired data.

Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv 2402.01306, Eq. 7 and the
estimate of z_0 below it. TRL takes the previous row's response and z of one device's micro-batches (the mean over
devices); here z is that of the whole step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.pointwise import PointwiseLoss, sum_and_count
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.types import LossOutput, PairLogps, StepStatistics

KL = "kto_kl"


class KTO(PointwiseLoss):
    """Each response's implicit reward against the policy's distance from the reference."""

    depends_on_batch = True
    needs_mismatched = True
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1, "SimPO's comparison searches 0.01 to 0.1 for KTO, whose paper has 0.1; ours above")
    }

    @validated
    def __init__(
        self, beta: Positive = 0.1, desirable_weight: NonNegative = 1.0, undesirable_weight: NonNegative = 1.0
    ) -> None:
        super().__init__()
        self.beta, self.desirable_weight, self.undesirable_weight = beta, desirable_weight, undesirable_weight

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        chosen = f"{self.desirable_weight:g} (1 - sigmoid({self.beta:g} (a - z)))"
        return f"{chosen} + {self.undesirable_weight:g} (1 - sigmoid({self.beta:g} (z - b)))"

    def observe(self, step: PairLogps, mismatched: PairLogps | None = None, *, training: bool = True) -> StepStatistics:
        kl = step.policy_chosen.new_zeros(())
        if mismatched is not None:
            chosen = sum_and_count(mismatched.chosen_log_ratio, mismatched.chosen_present)
            total, count = chosen + sum_and_count(mismatched.rejected_log_ratio, mismatched.rejected_present)
            kl = (total / count).clamp_min(0).to(kl)
        return StepStatistics({KL: kl.expand_as(step.policy_chosen)})

    def chosen_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        # 1 - sigmoid(x) as sigmoid(-x), which is exact for large x
        return self.desirable_weight * torch.sigmoid(self.beta * (self.of_step(logps)[KL] - logps.chosen_log_ratio))

    def rejected_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return self.undesirable_weight * torch.sigmoid(self.beta * (logps.rejected_log_ratio - self.of_step(logps)[KL]))

    def forward(self, logps: PairLogps) -> LossOutput:
        return replace(super().forward(logps), diagnostics={"kl": self.of_step(logps)[KL]})
