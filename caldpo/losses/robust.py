"""Robust DPO: ``[-(1 - e) log sigmoid(beta d) + e log sigmoid(-beta d)] / (1 - 2 e)``, ``d = a - b``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. ``e``: the rate of flipped
labels. Its mean over flips at that rate is DPO's loss under true labels, where conservative DPO (``dpo`` with
``label_smoothing``) is biased. The loss of a single pair is unbounded below: at large margins it goes on falling as
``-e beta d / (1 - 2 e)``.

Ray Chowdhury et al. 2024, "Provably Robust DPO", arXiv 2403.00409, section 3.1.
"""

from __future__ import annotations

from typing import ClassVar

from caldpo.config.bounds import FlipRate, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class RobustDPO(PreferenceLoss):
    """DPO's loss, unbiased under flipped labels."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "from TRL's index (0.01), over the paper's 0.1; ours up to 1"),
        "label_noise": Range(0.0, 0.4, "ours: flip rates of a study, over the paper's 0.1", log=False),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, label_noise: FlipRate = 0.1) -> None:
        super().__init__()
        self.beta, self.label_noise = beta, label_noise

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        e, margin = self.label_noise, f"{self.beta:g} (a - b)"
        return f"[-{1 - e:g} logsigmoid({margin}) + {e:g} logsigmoid(-{margin})] / {1 - 2 * e:g}"

    def forward(self, logps: PairLogps) -> LossOutput:
        margin = self.beta * log_ratio_gap(logps, per_token=False)
        e = self.label_noise
        contrast = ((1 - e) * logistic(margin) - e * logistic(-margin)) / (1 - 2 * e)
        return LossOutput(contrast, {"contrast": contrast})
