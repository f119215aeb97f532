"""Cal-SLiC: SLiC-HF plus Cal-DPO's calibration term.

``relu(delta - p_w + p_l) + weight (-p_w / n_w) + c ((a - 1/(2 beta))^2 + (b + 1/(2 beta))^2)`` with the
first two terms as in ``slic.py`` and ``a``, ``b`` the log-ratios policy/reference of the chosen and rejected
response, summed, nats. The calibration term makes it need a reference, which SLiC does not.

The paper's claim of generality (Xiao et al. 2024, arXiv 2412.14516).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from caldpo.config.bounds import Finite, NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.calibration import Calibration
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.slic import SLiC
from caldpo.types import LossOutput, PairLogps


class CalSLiC(PreferenceLoss):
    """SLiC-HF with each log-ratio calibrated to the scale of the reward."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-4, 1.0, "ours: as cal_dpo"),
        **SLiC.search_space,
    }

    @validated
    def __init__(
        self,
        beta: Positive = 0.1,
        delta: NonNegative = 10.0,
        nll_weight: NonNegative = 1.0,
        calibration_weight: NonNegative = 1.0,
        targets: Literal["fixed", "scores"] = "fixed",
        score_center: Finite | Literal["pair"] | None = None,
        score_scale: Positive | None = None,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.slic = SLiC(delta, nll_weight)
        self.calibration = Calibration(beta, calibration_weight, targets, score_center, score_scale)
        self.needs_scores = self.calibration.needs_scores

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"{self.slic.formula} + {self.calibration.formula}"

    def forward(self, logps: PairLogps) -> LossOutput:
        return self.calibration.added_to(self.slic(logps), logps)
