"""APO-zero: ``1 - sigmoid(beta a) + sigmoid(beta b)``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. Anchored at the reference:
pushes the chosen above it and the rejected below it, each by itself, and both saturate. For chosen responses that are
better than what the model writes; see ``apo_down`` for worse ones.

D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions", arXiv 2408.06266, Eq. 7.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.pointwise import PointwiseLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.types import PairLogps


class APOZero(PointwiseLoss):
    """The chosen above the reference, the rejected below it."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-3, 1.0, "from arXiv 2502.01237's best at 8B (0.003), over the authors' 0.1; ours up to 1")
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
        return f"1 - sigmoid({self.beta:g} a) + sigmoid({self.beta:g} b)"

    def chosen_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return torch.sigmoid(-self.beta * logps.chosen_log_ratio)

    def rejected_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return torch.sigmoid(self.beta * logps.rejected_log_ratio)
