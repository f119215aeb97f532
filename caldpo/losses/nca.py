"""NCA: ``-log sigmoid(beta a) - log sigmoid(-beta a) / 2 - log sigmoid(-beta b) / 2``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. Noise contrastive
estimation tells the chosen response from two samples of the reference, of which the pair is taken to consist: hence
the halves. Its optimum is at ``beta a = ln 2`` (``sigmoid = 2/3``), and beyond it the chosen is pulled back.

Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv 2402.05369, the
loss of pairs (reward 1 for the chosen, none for the rejected).
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.pointwise import PointwiseLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic
from caldpo.types import PairLogps


class NCA(PointwiseLoss):
    """Classification of each response as chosen or as noise."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-4, 1.0, "from arXiv 2502.01237's best at 7-8B, over the authors' 0.01; ours up to 1")
    }

    @validated
    def __init__(self, beta: Positive = 0.01) -> None:
        super().__init__()
        self.beta = beta

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        b = f"{self.beta:g}"
        return f"-logsigmoid({b} a) - 0.5 logsigmoid(-{b} a) - 0.5 logsigmoid(-{b} b)"

    def chosen_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        reward = self.beta * logps.chosen_log_ratio
        return logistic(reward) + logistic(-reward) / 2

    def rejected_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return logistic(-self.beta * logps.rejected_log_ratio) / 2
