"""Learning-rate schedules."""

from __future__ import annotations

import math
from fractions import Fraction as Exact
from typing import Any, Literal

import torch

from caldpo.config.bounds import Fraction, NonNegativeInt
from caldpo.config.signatures import validated

Decay = Literal["constant", "linear", "cosine"]


class Schedule:
    """Linear warm-up from 0, then a decay to 0 (or none) at the last step.

    Args:
        decay: shape after the warm-up.
        warmup_steps: optimiser steps of warm-up; None takes the ratio.
        warmup_ratio: share of all steps that is warm-up, rounded down (the first step of a warm-up has rate 0).
    """

    @validated
    def __init__(
        self,
        decay: Decay = "cosine",
        warmup_steps: NonNegativeInt | None = None,
        warmup_ratio: Fraction = 0.1,
    ) -> None:
        self.decay, self.warmup_steps, self.warmup_ratio = decay, warmup_steps, warmup_ratio

    def attach(self, optimizer: torch.optim.Optimizer, total_steps: int) -> dict[str, Any]:
        """Make Lightning's optimiser dictionary, with the schedule stepped at every optimiser step."""
        from transformers import get_scheduler  # brings PEFT and bitsandbytes along, which other commands do not need

        warmup = share_of(self.warmup_ratio, total_steps) if self.warmup_steps is None else self.warmup_steps
        name = "constant_with_warmup" if self.decay == "constant" else self.decay
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def share_of(ratio: float, steps: int) -> int:
    """Compute ``ratio`` of ``steps``, rounded down, with the ratio as written in decimal: 0.29 of 100 is 29.

    The float product is 28.999999999999996.
    """
    return math.floor(Exact(repr(float(ratio))) * steps)
