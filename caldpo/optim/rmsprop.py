"""RMSprop, as in the DPO reference implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from caldpo.config.bounds import Fraction, NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.optim.lr_schedule import Schedule
from caldpo.optim.optimizer_base import OptimizerChoice, decay_groups


class RMSprop(OptimizerChoice):
    """RMSprop, the optimiser of the DPO reference implementation and of the paper's Pythia runs.

    Args:
        schedule: of the learning rate.
        lr: peak learning rate.
        smoothing: decay of the mean of squared gradients.
        eps: added to the denominator.
        weight_decay: on matrices.
        foreach: update all weights in a few kernels, which temporarily takes memory for one more copy of them; False
            updates one by one. There is no fused kernel.
    """

    eps: float

    @validated
    def __init__(
        self,
        schedule: Schedule,
        lr: Positive = 5e-7,
        smoothing: Fraction = 0.99,
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        foreach: bool = True,
    ) -> None:
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay
        self.smoothing, self.eps, self.foreach = smoothing, eps, foreach

    def build(self, policy: nn.Module, total_steps: int, *, scaled: bool = False) -> dict[str, Any]:
        """Build the optimiser and its schedule; see :meth:`OptimizerChoice.build`."""
        optimizer = torch.optim.RMSprop(
            decay_groups(policy, self.weight_decay),
            lr=self.lr,
            alpha=self.smoothing,
            eps=self.eps,
            foreach=self.foreach,
        )
        return self.schedule.attach(optimizer, total_steps)
