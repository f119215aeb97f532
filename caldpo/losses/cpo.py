"""CPO: ``-log sigmoid(beta (p_w - p_l)) + weight * (-p_w / n_w)``.

``p_w``, ``p_l``: policy log-probs of the chosen and rejected response, summed, nats; no reference.
``n_w``: tokens of the chosen response; its negative log-likelihood is a mean per token.

Xu et al. 2024, "Contrastive Preference Optimization", arXiv 2401.08417.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import chosen_nll, logistic
from caldpo.types import LossOutput, PairLogps


class CPO(PreferenceLoss):
    """DPO with a uniform reference, and the likelihood of the chosen response."""

    needs_reference = False
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "ours: a decade around the paper's 0.1"),
        "nll_weight": Range(0.01, 10.0, "ours: two decades below and one above the paper's 1"),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, nll_weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.beta, self.nll_weight = beta, nll_weight

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Beta times the policy's log-prob: DPO's reward under a uniform reference, up to a constant."""
        return self.beta * logps.policy_chosen, self.beta * logps.policy_rejected

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (p_w - p_l)) + {self.nll_weight:g} (-p_w/n_w)"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = logistic(self.beta * (logps.policy_chosen - logps.policy_rejected))
        nll = self.nll_weight * chosen_nll(logps)
        return LossOutput(contrast + nll, {"contrast": contrast, "nll": nll})
