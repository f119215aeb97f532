"""AOT: ``-log sigmoid(beta (u_(k) - v_(k)))``, the k-th smallest of one quantity against the k-th smallest of another.

``paired``: ``u = p_w - p_l`` of the policy and ``v`` that of the reference, so that the distribution of the policy's
margins comes to dominate the reference's. ``unpaired``: ``u = a`` and ``v = b``, the log-ratios of chosen and rejected
responses, whichever pair they belong to. Both sorted over all pairs of the optimiser step; nats.

A pair's own loss has its ``u`` and the partner of the same rank. In ``unpaired`` the partner is another pair's, which
gets the gradient through a second term of value 0: values and gradients of a step add up to those of the sorted sum.

Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport", arXiv 2406.05882, with the
logistic loss as h. TRL's ``aot`` and ``aot_unpaired``, which sort each device's micro-batch by itself.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Choices, Range, SearchSpace
from caldpo.losses.terms import logistic
from caldpo.types import LossOutput, PairLogps, StepStatistics

UPPER, LOWER = "aot_upper", "aot_lower"  # partners: what a pair's u is compared with, and what its v is compared with


class AOT(PreferenceLoss):
    """Logistic loss on the differences of sorted margins, or of sorted log-ratios."""

    depends_on_batch = True
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.003, 1, "ours: as DPO's; the paper has 0.01"),
        "variant": Choices(("paired", "unpaired"), "the paper compares both"),
    }

    @validated
    def __init__(self, beta: Positive = 0.01, variant: Literal["paired", "unpaired"] = "paired") -> None:
        super().__init__()
        self.beta, self.variant = beta, variant

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        u, v = ("[p_w - p_l]", "[ref_w - ref_l]") if self.variant == "paired" else ("[a]", "[b]")
        return f"-logsigmoid({self.beta:g} ({u} - {v})), [] sorted over the step"

    def observe(self, step: PairLogps, mismatched: PairLogps | None = None, *, training: bool = True) -> StepStatistics:
        u, v = self._compared(step)
        upper, lower = (values.detach().sort(stable=True) for values in (u, v))
        partners = {UPPER: torch.empty_like(lower.values), LOWER: torch.empty_like(upper.values)}
        partners[UPPER][upper.indices] = lower.values
        partners[LOWER][lower.indices] = upper.values
        return StepStatistics(partners)

    def forward(self, logps: PairLogps) -> LossOutput:
        u, v = self._compared(logps)
        partners = self.of_step(logps)
        contrast = logistic(self.beta * (u - partners[UPPER]))
        if self.variant == "unpaired":  # the partner's gradient; the reference's margins have none
            other = logistic(self.beta * (partners[LOWER] - v))
            contrast = contrast + (other - other.detach())
        return LossOutput(contrast, {"contrast": contrast})

    def _compared(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        a, b = logps.chosen_log_ratio, logps.rejected_log_ratio
        if self.variant == "unpaired":
            return a, b
        assert logps.reference_chosen is not None  # else a and b are errors
        assert logps.reference_rejected is not None
        return logps.policy_chosen - logps.policy_rejected, logps.reference_chosen - logps.reference_rejected
