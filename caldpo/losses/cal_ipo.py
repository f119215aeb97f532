"""Cal-IPO: IPO's square plus Cal-DPO's calibration term.

``(gap - 1/(2 beta))^2 + c ((a - 1/(2 beta))^2 + (b + 1/(2 beta))^2)`` with ``gap`` as in ``ipo.py`` and
``a``, ``b`` the log-ratios policy/reference of the chosen and rejected response, summed, nats.

The paper's claim of generality (Xiao et al. 2024, arXiv 2412.14516). One beta serves both terms.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from caldpo.config.bounds import Finite, NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.calibration import Calibration
from caldpo.losses.ipo import IPO
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.types import LossOutput, PairLogps


class CalIPO(PreferenceLoss):
    """IPO with each log-ratio calibrated to the scale of the reward."""

    search_space: ClassVar[SearchSpace] = {"beta": Range(3e-4, 1.0, "ours: as cal_dpo")}

    @validated
    def __init__(
        self,
        beta: Positive = 0.1,
        length_normalize: bool = True,
        calibration_weight: NonNegative = 1.0,
        targets: Literal["fixed", "scores"] = "fixed",
        score_center: Finite | Literal["pair"] | None = None,
        score_scale: Positive | None = None,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.ipo = IPO(beta, length_normalize)
        self.length_normalised = self.ipo.length_normalised
        self.calibration = Calibration(beta, calibration_weight, targets, score_center, score_scale)
        self.needs_scores = self.calibration.needs_scores

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"{self.ipo.formula} + {self.calibration.formula}"

    def forward(self, logps: PairLogps) -> LossOutput:
        return self.calibration.added_to(self.ipo(logps), logps)
