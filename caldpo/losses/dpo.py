"""DPO: ``-(1-e) log sigmoid(beta (a - b)) - e log sigmoid(-beta (a - b))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats.
``e``: label smoothing, the probability that a label is flipped (0 is plain DPO).

Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, Eq. 7; the smoothed form is
conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences").
"""

from __future__ import annotations

from typing import ClassVar

from caldpo.config.bounds import FlipRate, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class DPO(PreferenceLoss):
    """Logistic loss on the margin of implicit rewards."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-3, 1.0, "from arXiv 2502.01237's best at 8B, over the paper's 0.1 and 0.5; ours up to 1")
    }

    @validated
    def __init__(self, beta: Positive = 0.1, label_smoothing: FlipRate = 0.0) -> None:
        super().__init__()
        self.beta, self.label_smoothing = beta, label_smoothing

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        e = self.label_smoothing
        plain = f"-logsigmoid({self.beta:g} (a - b))"
        return plain if e == 0 else f"{1 - e:g} [{plain}] + {e:g} [-logsigmoid(-{self.beta:g} (a - b))]"

    def forward(self, logps: PairLogps) -> LossOutput:
        margin = self.beta * log_ratio_gap(logps, per_token=False)
        e = self.label_smoothing
        contrast = (1 - e) * logistic(margin) + e * logistic(-margin)
        return LossOutput(contrast, {"contrast": contrast})
