"""GPO, the family: ``f(beta (a - b))`` for a loss ``f`` of binary classification.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats.

| function | f(x) | |
|---|---|---|
| logistic | ``log(1 + exp(-x))`` | DPO |
| exponential | ``exp(-x)`` | |
| truncated_quadratic | ``relu(1 - x)^2`` | |
| savage | ``1 / (1 + exp(x))^2`` | not convex, bounded by 1 |
| squared | ``(x - 1)^2`` | IPO with sums: ``beta^2`` times its loss at half the beta |
| hinge | ``relu(1 - x)`` | RSO's |

Tang et al. 2024, "Generalized Preference Optimization: A Unified Approach to Offline Alignment", arXiv 2402.05749,
Table 1. The first, fifth and last are what the paper unifies, the others its new members.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.exponents import clamped_exp, exponent_limit
from caldpo.losses.search_space import Choices, Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class GPO(PreferenceLoss):
    """A loss of binary classification on the margin of implicit rewards."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-3, 1.0, "ours: as dpo"),
        "function": Choices(("exponential", "truncated_quadratic", "savage"), "the paper's own members"),
    }

    @validated
    def __init__(
        self,
        beta: Positive = 0.1,
        function: Literal[
            "logistic", "exponential", "truncated_quadratic", "savage", "squared", "hinge"
        ] = "truncated_quadratic",
    ) -> None:
        super().__init__()
        self.beta, self.function = beta, function

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        f = {
            "logistic": "log(1 + exp(-x))",
            "exponential": "exp(-x)",
            "truncated_quadratic": "relu(1 - x)^2",
            "savage": "1 / (1 + exp(x))^2",
            "squared": "(x - 1)^2",
            "hinge": "relu(1 - x)",
        }[self.function]
        return f"f({self.beta:g} (a - b)), f(x) = {f}"

    def forward(self, logps: PairLogps) -> LossOutput:
        margin = self.beta * log_ratio_gap(logps, per_token=False)
        contrast = self._f(margin)
        if self.function != "exponential":
            return LossOutput(contrast, {"contrast": contrast})
        clamped = -margin > exponent_limit(contrast.dtype)
        return LossOutput(contrast, {"contrast": contrast}, {"clamped": clamped.to(contrast.dtype)})

    def _f(self, x: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        match self.function:
            case "logistic":
                return logistic(x)
            case "exponential":
                return clamped_exp(-x)
            case "truncated_quadratic":
                return F.relu(1 - x) ** 2
            case "savage":
                return torch.sigmoid(-x) ** 2
            case "squared":
                return (x - 1) ** 2
            case "hinge":
                return F.relu(1 - x)
