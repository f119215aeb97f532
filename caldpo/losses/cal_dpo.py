"""Cal-DPO: ``-log sigmoid(a - b) + c ((a - 1/(2 beta))^2 + (b + 1/(2 beta))^2)``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. There is no
beta inside the sigmoid: the authors confirmed the equation over their pseudo-code. ``c = 1`` is the paper's
equation, 0.5 the authors' second code release.

At policy = reference the loss is ``ln 2 + c / (2 beta^2)`` and its gradient in ``a`` is
``-(1/2 + c / beta)``: at small beta calibration outweighs the contrast by far, so that gradient clipping
decides the step (``clip_fraction`` and ``terms/*`` are logged for that reason).

Xiao et al. 2024, arXiv 2412.14516, Eq. 10; the calibration term and its targets: ``calibration.py``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from caldpo.config.bounds import Finite, NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.calibration import Calibration
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class CalDPO(PreferenceLoss):
    """Logistic contrast of log-ratios, and calibration of each to the scale of the reward."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-4, 1.0, "from arXiv 2502.01237's best at 8B, over the authors' 0.001 to 0.1; ours up to 1")
    }

    @validated
    def __init__(
        self,
        beta: Positive = 0.1,
        calibration_weight: NonNegative = 1.0,
        targets: Literal["fixed", "scores"] = "fixed",
        score_center: Finite | Literal["pair"] | None = None,
        score_scale: Positive | None = None,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.calibration = Calibration(beta, calibration_weight, targets, score_center, score_scale)
        self.needs_scores = self.calibration.needs_scores

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    @property
    def formula(self) -> str:
        return f"-logsigmoid(a - b) + {self.calibration.formula}"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = logistic(log_ratio_gap(logps, per_token=False))
        return self.calibration.added_to(LossOutput(contrast, {"contrast": contrast}), logps)
