"""Hinge on log-ratios: ``max(0, margin - (a - b))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. A pair whose gap has
reached the margin has no gradient any more.
"""

from __future__ import annotations

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.types import LossOutput, PairLogps


class HingeLoss(PreferenceLoss):
    """Hinge on the gap of log-ratios.

    Args:
        margin: gap that is wanted, nats.
    """

    @validated  # which checks the bounds: the command line is checked only against classes of caldpo
    def __init__(self, margin: Positive = 5.0) -> None:
        super().__init__()
        self.margin = margin

    @property
    def formula(self) -> str:
        return f"max(0, {self.margin:g} - (a - b))"

    def forward(self, logps: PairLogps) -> LossOutput:
        gap = logps.chosen_log_ratio - logps.rejected_log_ratio
        hinge = (self.margin - gap).clamp(min=0)
        return LossOutput(hinge, {"hinge": hinge}, {"reached": (gap >= self.margin).float()})
