"""SLiC-HF: ``relu(delta - p_w + p_l) + weight * (-p_w / n_w)``.

``p_w``, ``p_l``: policy log-probs of the chosen and rejected response, summed, nats; no reference.
``n_w``: tokens of the chosen response, whose negative log-likelihood is the regulariser (mean per token).

Zhao et al. 2023, "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", arXiv 2305.10425. The
hinge on beta-scaled log-ratios that some trainers call "hinge" is another loss: see ``rso``.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from caldpo.config.bounds import NonNegative
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import chosen_nll
from caldpo.types import LossOutput, PairLogps


class SLiC(PreferenceLoss):
    """Hinge on the gap of policy log-probs, and the likelihood of the chosen response."""

    needs_reference = False
    search_space: ClassVar[SearchSpace] = {
        "delta": Range(0.5, 50.0, "ours: gaps of summed log-probs on small models are of a few to tens of nats"),
        "nll_weight": Range(0.01, 10.0, "ours: two decades below and one above the default"),
    }

    @validated
    def __init__(self, delta: NonNegative = 10.0, nll_weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.delta, self.nll_weight = delta, nll_weight

    @property
    def formula(self) -> str:
        return f"relu({self.delta:g} - p_w + p_l) + {self.nll_weight:g} (-p_w/n_w)"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = F.relu(self.delta - logps.policy_chosen + logps.policy_rejected)
        nll = self.nll_weight * chosen_nll(logps)
        return LossOutput(contrast + nll, {"contrast": contrast, "nll": nll})
