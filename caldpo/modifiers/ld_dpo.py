"""LD-DPO: tokens beyond the length of the pair's shorter response weigh ``alpha``, all others 1.

``log pi(y|x)`` becomes the sum over the first ``min(n_w, n_l)`` tokens plus ``alpha`` times the rest, for policy and
reference alike; ``alpha = 1`` changes nothing, ``alpha = 0`` cuts the longer response. So the loss is less sensitive to
a difference in length. In training only: held-out log-probs are plain sums, for the curves of all losses to compare.

Liu et al. 2024, "Length Desensitization in Direct Preference Optimization", arXiv 2409.06411, Eq. 9.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Fraction
from caldpo.config.signatures import validated
from caldpo.modifiers.modifier_base import TokenWeight
from caldpo.types import PairBatch


class LDDPO(TokenWeight):
    """Weighs the tokens by which one response is longer than the other."""

    name = "ld_dpo"

    @validated
    def __init__(self, alpha: Fraction = 0.5) -> None:
        super().__init__()
        self.alpha = alpha

    @property
    def note(self) -> str:
        return f"tokens beyond the shorter response weigh {self.alpha:g}"

    def weights(self, batch: PairBatch, step: int) -> Float[Tensor, " targets"]:
        shared = self.shared_lengths(batch).repeat(2)
        beyond = batch.places_in_response() >= shared[batch.response]
        return torch.ones_like(beyond, dtype=torch.float32).masked_fill(beyond, self.alpha)
