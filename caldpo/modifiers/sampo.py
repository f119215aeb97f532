"""SamPO: of the longer response of a pair, as many tokens as the shorter one has are drawn at random and summed.

The others weigh 0, for policy and reference alike; the same tokens for both. So a difference in length does not make
a difference of the implicit rewards. The draw depends on ``seed``, the number of the optimiser step and the pair's row
alone: a pair has another one in each epoch, and a resumed run has the same. In training only: held-out log-probs are
plain sums, for the curves of all losses to compare.

Lu et al. 2024, "Eliminating Biased Length Reliance of Direct Preference Optimization via Down-Sampled KL Divergence",
arXiv 2406.10957, Eq. 7 and the authors' repository (LuJunru/SamPO).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegativeInt
from caldpo.config.signatures import validated
from caldpo.modifiers.modifier_base import TokenWeight
from caldpo.types import PairBatch


class SamPO(TokenWeight):
    """Sums a random part of the longer response's tokens."""

    name = "sampo"

    @validated
    def __init__(self, seed: NonNegativeInt = 0) -> None:
        super().__init__()
        self.seed = seed

    @property
    def note(self) -> str:
        return "of the longer response as many tokens as the shorter one has, drawn at random in each step"

    def weights(self, batch: PairBatch, step: int) -> Float[Tensor, " targets"]:
        parts = []
        sides = batch.response_lengths.view(2, -1).T.tolist()
        rows = zip(sides, self.shared_lengths(batch).tolist(), batch.index.tolist(), strict=True)
        for lengths, shared, index in rows:
            draw = np.random.default_rng((self.seed, step, index))
            for length in lengths:
                part = torch.ones(length, dtype=torch.float32)
                if length > shared:
                    part[torch.from_numpy(draw.permutation(length)[shared:])] = 0
                parts.append(part)
        return torch.cat(parts).to(batch.targets.device)
