"""Adafactor, Shazeer & Stern 2018: second moments of a matrix by its rows and columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from caldpo.config.bounds import NonNegative, NonPositive, Positive
from caldpo.config.signatures import validated
from caldpo.optim.lr_schedule import Schedule
from caldpo.optim.optimizer_base import OptimizerChoice, decay_groups, refuse_sharded


class Adafactor(OptimizerChoice):
    """PyTorch's Adafactor: stores ``rows + columns`` numbers for a matrix instead of AdamW's ``2 rows columns``.

    The step is relative: a weight matrix moves by at most ``lr`` times its root mean square. Updates are clipped to a
    root mean square of 1 before that, as in the paper.

    Args:
        schedule: of the learning rate.
        lr: peak learning rate, relative to the size of the weights.
        beta2_decay: exponent d of the second moments' decay, ``1 - step^d``.
        min_size: the least root mean square of a weight that the step is relative to.
        weight_decay: decoupled, on matrices.
    """

    @validated
    def __init__(
        self,
        schedule: Schedule,
        lr: Positive = 1e-5,
        beta2_decay: NonPositive = -0.8,
        min_size: Positive = 1e-3,
        weight_decay: NonNegative = 0.0,
    ) -> None:
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay
        self.beta2_decay, self.min_size = beta2_decay, min_size

    def check(self, precision: str, *, sharded: bool = False, replicas: bool = False) -> None:
        """Refuse weights that are sharded over ranks.

        Raises:
            CaldpoError: they are. PyTorch's update squares the norms of columns in place, which fails on the partial
                norms of a rank's rows.
        """
        if sharded:
            refuse_sharded("adafactor")

    def build(self, policy: nn.Module, total_steps: int, *, scaled: bool = False) -> dict[str, Any]:
        """Build the optimiser and its schedule; see :meth:`OptimizerChoice.build`."""
        optimizer = torch.optim.Adafactor(
            decay_groups(policy, self.weight_decay),
            lr=self.lr,
            beta2_decay=self.beta2_decay,
            eps=(None, self.min_size),
        )
        return self.schedule.attach(optimizer, total_steps)
