"""SimPO: ``-log sigmoid(beta (m_w - m_l) - gamma)``.

``m_w = p_w / n_w``, ``m_l = p_l / n_l``: policy log-probs of the chosen and rejected response, mean per token, nats;
no reference. ``gamma``: the margin in logits, after beta; the authors' code has it as ``gamma / beta``.

Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv 2405.14734, Eq. 6. Equal
to TRL's CPO trainer with ``loss_type=simpo cpo_alpha=0`` and ``simpo_gamma`` as gamma.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic, token_means
from caldpo.types import LossOutput, PairLogps


class SimPO(PreferenceLoss):
    """Logistic contrast of mean log-probs per token, with a margin."""

    needs_reference = False
    length_normalised = True
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(1.0, 20.0, "the authors' repository: 2, 2.5 and 10; ours: half and twice of that"),
        "gamma": Range(0.1, 5.0, "the authors' repository: gamma / beta from 0 to 1, of their betas 0.25 to 5"),
    }

    @validated
    def __init__(self, beta: Positive = 2.0, gamma: NonNegative = 1.0) -> None:
        super().__init__()
        self.beta, self.gamma = beta, gamma

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (p_w/n_w - p_l/n_l) - {self.gamma:g})"

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """``beta m`` (Eq. 4 of the paper)."""
        chosen, rejected = token_means(logps)
        return self.beta * chosen, self.beta * rejected

    def forward(self, logps: PairLogps) -> LossOutput:
        chosen, rejected = token_means(logps)
        contrast = logistic(self.beta * (chosen - rejected) - self.gamma)
        return LossOutput(contrast, {"contrast": contrast})
