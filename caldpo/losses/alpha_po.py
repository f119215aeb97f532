"""AlphaPO: ``-log sigmoid(beta (r(m_w) - r(m_l)) - gamma)`` with ``r(m) = (1 - exp(-alpha m)) / alpha``.

``m_w = p_w / n_w``, ``m_l = p_l / n_l``: policy log-probs of the chosen and rejected response, mean per token, nats;
no reference. alpha 0 is ``r(m) = m``, SimPO; above 0 the reward is steeper where the policy finds a response unlikely.

Gupta et al. 2025, "AlphaPO: Reward Shape Matters for LLM Alignment", arXiv 2501.03884. Equal to TRL's CPO trainer with
``loss_type=alphapo``, its ``alpha`` and ``simpo_gamma`` as gamma.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Finite, NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.exponents import exponent_limit, power_link
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic, token_means
from caldpo.types import LossOutput, PairLogps


class AlphaPO(PreferenceLoss):
    """SimPO with another shape of the reward."""

    needs_reference = False
    length_normalised = True
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(1.0, 20.0, "as SimPO, whose betas (2, 2.5, 10) it takes over"),
        "gamma": Range(0.1, 5.0, "as SimPO; TRL's paper index: 0.1"),
        "alpha": Range(0.0, 1.0, "ours: from SimPO (0) over TRL's paper index (0.25) to oxRL's 1", log=False),
    }

    @validated
    def __init__(self, beta: Positive = 2.5, gamma: NonNegative = 0.1, alpha: Finite = 0.25) -> None:
        super().__init__()
        self.beta, self.gamma, self.alpha = beta, gamma, alpha

    @property
    def formula(self) -> str:
        r = f"(1 - exp(-{self.alpha:g} m)) / {self.alpha:g}" if self.alpha else "m"
        return f"-logsigmoid({self.beta:g} (r(p_w/n_w) - r(p_l/n_l)) - {self.gamma:g}), r(m) = {r}"

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """``beta r(m)``."""
        chosen, rejected = (power_link(mean, self.alpha) for mean in token_means(logps))
        return self.beta * chosen, self.beta * rejected

    def forward(self, logps: PairLogps) -> LossOutput:
        chosen, rejected = token_means(logps)
        gap = power_link(chosen, self.alpha) - power_link(rejected, self.alpha)
        contrast = logistic(self.beta * gap - self.gamma)
        largest = torch.maximum(-self.alpha * chosen, -self.alpha * rejected)
        clamped = largest > exponent_limit(contrast.dtype)
        return LossOutput(contrast, {"contrast": contrast}, {"clamped": clamped.to(contrast.dtype)})
