"""WPO: each pair weighs ``w_w w_l``, ``w = exp(1/n sum_t [log pi(y_t) - log alignment_t])``, without gradient.

``w`` of chosen and rejected response: the policy's mean log-prob per token, as a probability: pairs that the policy
would itself produce weigh more, which makes off-policy pairs resemble on-policy ones. With ``alignment=none`` nothing
is subtracted, and ``w`` is the geometric mean of the tokens' probabilities. The product is at most 1.

Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", arXiv 2406.11827, Eq. 3 and the
authors' repository (wzhouad/WPO), which clamps the product at 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.modifiers.modifier_base import PairWeight
from caldpo.types import PairLogps


class WPO(PairWeight):
    """Weighs pairs by how likely the policy is to produce them."""

    name = "wpo"

    @validated
    def __init__(self, alignment: Literal["none"] = "none") -> None:
        super().__init__()
        self.alignment = alignment

    def formula(self, inner: str) -> str:
        return f"sg[exp(p_w/n_w + p_l/n_l)] ({inner})"

    def weights(self, logps: PairLogps, loss: PreferenceLoss) -> Float[Tensor, " pairs"]:
        with torch.no_grad():
            chosen = _mean(logps.policy_chosen, logps.chosen_tokens)
            rejected = _mean(logps.policy_rejected, logps.rejected_tokens)
            return (chosen + rejected).exp().clamp(max=1)


def _mean(summed: Tensor, tokens: Tensor) -> Tensor:
    """Mean per token; 0 for a response that a row does not have."""
    return torch.where(tokens > 0, summed / tokens, 0)
