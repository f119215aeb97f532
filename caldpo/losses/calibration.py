"""The calibration term of Cal-DPO: ``weight ((a - r_w / beta)^2 + (b - r_l / beta)^2)``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats.
``r_w``, ``r_l``: the rewards that the beta-scaled log-ratios are pulled to. The paper takes +1/2 and -1/2
(``targets=fixed``), which gives ``(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2``. With ``targets=scores`` they are
the pair's ground-truth scores from the data, ``scale (score - centre)``; the centre is the mean of the pair's
two scores (``score_center=pair``, the default) or a number, and the scale 1 unless given. Scores one apart and
centred on the pair are ``half``.

Xiao et al. 2024, "Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment",
arXiv 2412.14516, Eq. 10. The term fixes the value of each log-ratio, so it does not carry over to other
f-divergences, whose normalising constant cancels only in differences.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from caldpo.errors import CaldpoError
from caldpo.types import LossOutput, PairLogps


class Calibration(nn.Module):
    """Squared distance of both log-ratios from their targets. Built by the losses that use it."""

    def __init__(
        self,
        beta: float,
        weight: float,
        targets: Literal["fixed", "scores"],
        score_center: float | Literal["pair"] | None,
        score_scale: float | None,
    ) -> None:
        super().__init__()
        for key, value in {"score_center": score_center, "score_scale": score_scale}.items():
            if targets == "fixed" and value is not None:
                raise CaldpoError(
                    "is read only with targets=scores",
                    key=f"loss.{key}",
                    value=value,
                    remedy="add loss.targets=scores, or leave it out",
                )
        self.beta, self.weight, self.targets = beta, weight, targets
        self.score_center: float | Literal["pair"] = "pair" if score_center is None else score_center
        self.score_scale = 1.0 if score_scale is None else score_scale

    @property
    def needs_scores(self) -> bool:
        """Whether the targets come from the data."""
        return self.targets == "scores"

    @property
    def formula(self) -> str:
        """The term with its numbers filled in."""
        if self.targets == "fixed":
            t = f"{1 / (2 * self.beta):g}"
            return f"{self.weight:g} [(a - {t})^2 + (b + {t})^2]"
        centre = "pair mean" if self.score_center == "pair" else f"{self.score_center:g}"
        k = f"{self.score_scale / self.beta:g}"
        return f"{self.weight:g} [(a - {k} (score_w - {centre}))^2 + (b - {k} (score_l - {centre}))^2]"

    def log_ratio_targets(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Targets of the chosen and rejected log-ratio, nats.

        Raises:
            CaldpoError: the targets are the data's scores and the batch has none.
        """
        if self.targets == "fixed":
            target, dtype = 1 / (2 * self.beta), logps.policy_chosen.dtype
            # what this dtype cannot hold is infinite in it, as it is in arithmetic; refused before training
            half = torch.full_like(logps.policy_chosen, target if target <= torch.finfo(dtype).max else math.inf)
            return half, -half
        if logps.score_chosen is None or logps.score_rejected is None:
            raise CaldpoError(
                "the targets are the data's scores, and the data has none",
                key="loss.targets",
                value="scores",
                remedy="use loss.targets=fixed, or data with score_chosen and score_rejected",
            )
        dtype = logps.policy_chosen.dtype
        chosen, rejected = logps.score_chosen.to(dtype), logps.score_rejected.to(dtype)
        centre = (chosen + rejected) / 2 if self.score_center == "pair" else self.score_center
        scale = self.score_scale / self.beta
        return scale * (chosen - centre), scale * (rejected - centre)

    def added_to(self, output: LossOutput, logps: PairLogps) -> LossOutput:
        """Another loss with the term added to it, under the name ``calibration``."""
        term = self(logps)
        terms = {**output.terms, "calibration": term}
        return LossOutput(output.loss + term, terms, output.diagnostics)

    def forward(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        """Compute the weighted term per pair."""
        chosen, rejected = self.log_ratio_targets(logps)
        return self.weight * ((logps.chosen_log_ratio - chosen) ** 2 + (logps.rejected_log_ratio - rejected) ** 2)
