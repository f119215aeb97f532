"""ODPO: ``-log sigmoid(beta (a - b) - weight log(r_w - r_l))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. ``r_w``, ``r_l``: their
scores from the data. The offset, with the paper's alpha as its weight, asks for a larger margin where the scores are
further apart; a gap of 1 asks for none.

The formula is of pairs whose chosen response has the higher score. As the gap falls to 0 the offset falls to minus
infinity and the loss to 0: such a pair asks for nothing, and so does one whose scores contradict its label. The share
of both is logged as ``unordered``; ``data.on_degenerate`` and ``data.on_reversed_scores`` settle them before training.

Amini et al. 2024, "Direct Preference Optimization with an Offset", arXiv 2402.10571, with ``f = log`` as in the
authors' code (github.com/rycolab/odpo, trainers.py), whose loss is 0 at a gap of 0, too, and NaN below.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from caldpo.config.bounds import NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.scores import pair_scores
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class ODPO(PreferenceLoss):
    """DPO with a margin from the gap of the scores."""

    needs_scores = True
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "over the authors' commands: 0.05, 0.5 and 0.7; ours to 1, as dpo"),
        "offset_weight": Range(0.1, 2.0, "over the authors' commands: 0.5 and 1; ours wider"),
    }

    @validated
    def __init__(self, beta: Positive = 0.5, offset_weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.beta, self.offset_weight = beta, offset_weight

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (a - b) - {self.offset_weight:g} log(r_w - r_l)), 0 where r_w <= r_l"

    def forward(self, logps: PairLogps) -> LossOutput:
        margin = self.beta * log_ratio_gap(logps, per_token=False)
        chosen, rejected = pair_scores(logps)
        gap = chosen - rejected
        ordered = gap > 0
        offset = self.offset_weight * torch.log(gap.masked_fill(~ordered, 1.0)).to(margin.dtype)
        contrast = torch.where(ordered, logistic(margin - offset), 0)
        return LossOutput(contrast, {"contrast": contrast}, {"unordered": (~ordered).to(contrast.dtype)})
