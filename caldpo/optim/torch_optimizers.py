"""Optimisers of PyTorch: AdamW (Loshchilov & Hutter 2019), RMSprop, and Adafactor (Shazeer & Stern 2018)."""

from __future__ import annotations

from typing import Any, Literal

import torch

from caldpo.config.bounds import Fraction, NonNegative, NonPositive, Positive
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.optim.optimizer_base import OptimizerChoice, Schedule, can_fuse, refuse_sharded


class AdamW(OptimizerChoice):
    """AdamW without weight decay on biases and norms (parameters with fewer than two dimensions).

    ``fused`` updates all weights in one kernel; ``auto`` where the device and the precision allow it.
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
        # The fused kernel unscales gradients after clipping, which would compare scaled ones with an unscaled limit.
        if self.fused is True and precision == "16-mixed":
            raise CaldpoError(
                "cannot be combined with trainer.precision=16-mixed, whose gradients are still scaled when they are"
                " clipped",
                key="optim.fused",
                value="true",
                remedy="set optim.fused=auto, or trainer.precision=bf16-mixed",
            )

    def optimizer(self, groups: list[dict[str, Any]], scaled: bool) -> torch.optim.Optimizer:
        fused = can_fuse(groups) and not scaled if self.fused == "auto" else self.fused
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)


class RMSprop(OptimizerChoice):
    """RMSprop, the optimiser of the DPO reference implementation and of the paper's Pythia runs.

    ``smoothing`` is the decay of the mean of squared gradients. ``foreach`` updates all weights in a few kernels, which
    temporarily takes memory for one more copy of them; there is no fused kernel.
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

    def optimizer(self, groups: list[dict[str, Any]], scaled: bool) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(groups, lr=self.lr, alpha=self.smoothing, eps=self.eps, foreach=self.foreach)


class Adafactor(OptimizerChoice):
    """PyTorch's Adafactor: stores ``rows + columns`` numbers for a matrix instead of AdamW's ``2 rows columns``.

    The step is relative: a weight matrix moves by at most ``lr`` times its root mean square. Updates are clipped to a
    root mean square of 1 before that, as in the paper.

    ``beta2_decay`` is the exponent d of the second moments' decay, ``1 - step^d``; ``min_size`` the least root mean
    square of a weight that the step is relative to.
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
        if sharded:  # the update squares norms of columns in place, which fails on partial ones
            refuse_sharded("adafactor")

    def optimizer(self, groups: list[dict[str, Any]], scaled: bool) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(groups, lr=self.lr, beta2_decay=self.beta2_decay, eps=(None, self.min_size))
