"""RPO (DPO + NLL): ``-log sigmoid(beta (a - b)) + weight (-p_w / n_w)``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats; ``p_w``, ``n_w``: the
chosen's log-prob under the policy, summed, nats, and its tokens.

Pang et al. 2024, "Iterative Reasoning Preference Optimization", arXiv 2404.19733: the likelihood as a mean per token,
as here. Liu et al. 2024, "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial
Regularizer", arXiv 2405.16436, whose code adds ``eta beta (-p_w)`` with eta 0.005: a sum, so its weight for a response
of ``n_w`` tokens is ``eta beta n_w`` here.
"""

from __future__ import annotations

from typing import ClassVar

from caldpo.config.bounds import NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import chosen_nll, log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class RPO(PreferenceLoss):
    """DPO, and the likelihood of the chosen response."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "from arXiv 2405.16436's 0.01, over 2404.19733's 0.05 to 1"),
        "nll_weight": Range(0.01, 2.0, "over arXiv 2404.19733's 0.25 to 2; ours from 0.01, near DPO"),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, nll_weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.beta, self.nll_weight = beta, nll_weight

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (a - b)) + {self.nll_weight:g} (-p_w/n_w)"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = logistic(self.beta * log_ratio_gap(logps, per_token=False))
        nll = self.nll_weight * chosen_nll(logps)
        return LossOutput(contrast + nll, {"contrast": contrast, "nll": nll})
