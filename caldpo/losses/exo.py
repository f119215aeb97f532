"""EXO: ``KL(Bernoulli(sigmoid(beta d)) || Bernoulli(1 - e))``, ``d = a - b``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. ``e``: the probability that
the label is wrong. Where DPO with label smoothing minimises the KL divergence from the labels to the policy's
preferences, EXO minimises the reverse one, which seeks the mode. Its optimum is at ``sigmoid(beta d) = 1 - e``, so
``e`` must not be 0.

Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", arXiv 2402.00856, Eq. 16 (EXO-pref).
The authors' code leaves ``1 - e`` at 1 and has ``e = exp(-10)``.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap
from caldpo.types import LossOutput, PairLogps

LabelNoise = Annotated[float, Field(gt=0, lt=0.5, allow_inf_nan=False)]  # at 0 the divergence is infinite


class EXO(PreferenceLoss):
    """Reverse KL divergence of the policy's preferences from smoothed labels."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "around the authors' 0.1 (IMDb) and 0.5 (dialogues)"),
        "label_noise": Range(4e-5, 0.1, "from the authors' exp(-10), over TRL's 1e-3; ours up to noisy labels"),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, label_noise: LabelNoise = 1e-3) -> None:
        super().__init__()
        self.beta, self.label_noise = beta, label_noise

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"KL(Bern(sigmoid({self.beta:g} (a - b))) || Bern({1 - self.label_noise:g}))"

    def forward(self, logps: PairLogps) -> LossOutput:
        margin = self.beta * log_ratio_gap(logps, per_token=False)
        wins = torch.sigmoid(margin) * (F.logsigmoid(margin) - math.log1p(-self.label_noise))
        losses = torch.sigmoid(-margin) * (F.logsigmoid(-margin) - math.log(self.label_noise))
        contrast = wins + losses
        return LossOutput(contrast, {"contrast": contrast})
