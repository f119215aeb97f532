"""AdamW, Loshchilov & Hutter 2019."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from caldpo.config.bounds import Fraction, NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.optim.lr_schedule import Schedule
from caldpo.optim.optimizer_base import OptimizerChoice, can_fuse, decay_groups


class AdamW(OptimizerChoice):
    """AdamW without weight decay on biases and norms (parameters with fewer than two dimensions).

    Args:
        schedule: of the learning rate.
        lr: peak learning rate.
        beta1, beta2: decay of the two moments.
        eps: added to the denominator.
        weight_decay: decoupled, on matrices.
        fused: update all weights in one kernel; ``auto`` where the device and the precision allow it.
    """

    eps: float

    @validated
    def __init__(
        self,
        schedule: Schedule,
        lr: Positive = 1e-6,
        beta1: Fraction = 0.9,
        beta2: Fraction = 0.999,
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        fused: Literal["auto", True, False] = "auto",
    ) -> None:
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay
        self.betas, self.eps, self.fused = (beta1, beta2), eps, fused

    def check(self, precision: str, *, sharded: bool = False, replicas: bool = False) -> None:
        """Refuse a fused update in float16, before weights load.

        Raises:
            CaldpoError: it is requested. Its kernel unscales the gradients after clipping, which would compare scaled
                gradients with an unscaled limit.
        """
        if self.fused is True and precision == "16-mixed":
            raise CaldpoError(
                "cannot be combined with trainer.precision=16-mixed, whose gradients are still scaled when they are"
                " clipped",
                key="optim.fused",
                value="true",
                remedy="set optim.fused=auto, or trainer.precision=bf16-mixed",
            )

    def build(self, policy: nn.Module, total_steps: int, *, scaled: bool = False) -> dict[str, Any]:
        """Build the optimiser and its schedule; see :meth:`OptimizerChoice.build`."""
        groups = decay_groups(policy, self.weight_decay)
        fused = can_fuse(groups) and not scaled if self.fused == "auto" else self.fused
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)
        return self.schedule.attach(optimizer, total_steps)
