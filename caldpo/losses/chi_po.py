"""chi-PO: ``-log sigmoid(clip(beta (phi(a) - phi(b))))`` with ``phi(x) = x + exp(x)``, clipped to ``[-clip, clip]``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. Of the ratio ``z = exp(x)``
the link is ``z + log z``, the derivative of ``z^2 / 2 + z log z - z``: chi-squared and KL divergence added up. At
policy = reference its slope is 2, so that the first step is DPO's at twice the beta.

``clip`` is the paper's ``2 R_max``, where ``R_max`` bounds the rewards: a margin beyond it has no gradient.

Huang et al. 2024, "Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization via
Chi-Squared Preference Optimization", arXiv 2407.13399, Algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.exponents import clamped_exp, exponent_limit
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic
from caldpo.types import LossOutput, PairLogps


class ChiPO(PreferenceLoss):
    """DPO regularised by the chi-squared divergence beside KL."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.005, 1.0, "the paper's TL;DR: 0.05 and 0.005; ours: up to 1, as dpo")
    }

    @validated
    def __init__(self, beta: Positive = 0.05, clip: Positive | None = 10.0) -> None:
        super().__init__()
        self.beta, self.clip = beta, clip

    @property
    def formula(self) -> str:
        margin = f"{self.beta:g} (s(a) - s(b))"
        clipped = margin if self.clip is None else f"clip({margin}, +-{self.clip:g})"
        return f"-logsigmoid({clipped}), s(x) = x + exp(x)"

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """``beta phi(x)``: the reward up to a constant of the prompt."""
        return self.beta * _phi(logps.chosen_log_ratio), self.beta * _phi(logps.rejected_log_ratio)

    def forward(self, logps: PairLogps) -> LossOutput:
        chosen, rejected = logps.chosen_log_ratio, logps.rejected_log_ratio
        margin = self.beta * (_phi(chosen) - _phi(rejected))
        contrast = logistic(margin if self.clip is None else margin.clamp(-self.clip, self.clip))
        shares = {"clamped": torch.maximum(chosen, rejected) > exponent_limit(contrast.dtype)}
        if self.clip is not None:
            shares["clipped"] = margin.abs() > self.clip
        return LossOutput(contrast, {"contrast": contrast}, {k: v.to(contrast.dtype) for k, v in shares.items()})


def _phi(x: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    return x + clamped_exp(x)
