"""Optimisers and learning-rate schedules, as small builders whose signatures are the yaml's schema."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn
from transformers import get_scheduler

from caldpo.config.bounds import Fraction, NonNegative, NonNegativeInt, Positive
from caldpo.config.signature import validated
from caldpo.errors import CaldpoError

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
        """Lightning's optimiser dictionary: the schedule moves at every optimiser step."""
        warmup = math.floor(self.warmup_ratio * total_steps) if self.warmup_steps is None else self.warmup_steps
        name = "constant_with_warmup" if self.decay == "constant" else self.decay
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class AdamW:
    """AdamW; weight decay spares biases and norms (parameters with fewer than two dimensions).

    Args:
        schedule: of the learning rate.
        lr: peak learning rate.
        beta1, beta2: decay of the two moments.
        eps: added to the denominator.
        weight_decay: decoupled, on matrices.
        fused: update all weights in one kernel; ``auto`` where the device and the precision allow it.
    """

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

    def check(self, precision: str) -> None:
        """Refuse what cannot be right, before any weights load.

        Raises:
            CaldpoError: a fused update under float16 arithmetic. It undoes the scaling of the gradients inside
                its kernel, after clipping, which would compare scaled gradients with an unscaled limit.
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
        """The optimiser and its schedule.

        Args:
            policy: whose trainable parameters are on their device.
            total_steps: optimiser steps of the run.
            scaled: whether float16 arithmetic scales the gradients.
        """
        groups = decay_groups(policy, self.weight_decay)
        fused = can_fuse(groups) and not scaled if self.fused == "auto" else self.fused
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)
        return self.schedule.attach(optimizer, total_steps)


class RMSprop:
    """RMSprop, the optimiser of the DPO reference implementation and of the paper's Pythia runs.

    Args:
        schedule: of the learning rate.
        lr: peak learning rate.
        smoothing: decay of the mean of squared gradients.
        eps: added to the denominator.
        weight_decay: on matrices.
        foreach: update all weights in a few kernels, which takes memory for one more copy of them while it
            lasts; False goes one by one. It has no fused form.
    """

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

    def check(self, precision: str) -> None:
        """Nothing to refuse: it works in every precision."""

    def build(self, policy: nn.Module, total_steps: int, *, scaled: bool = False) -> dict[str, Any]:
        """The optimiser and its schedule; see :meth:`AdamW.build`."""
        optimizer = torch.optim.RMSprop(
            decay_groups(policy, self.weight_decay),
            lr=self.lr,
            alpha=self.smoothing,
            eps=self.eps,
            foreach=self.foreach,
        )
        return self.schedule.attach(optimizer, total_steps)


def can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Whether PyTorch has a fused kernel for all these parameters: floating point, on a device that has one."""
    devices = ("cuda", "cpu")
    return all(p.is_floating_point() and p.device.type in devices for group in groups for p in group["params"])


def decay_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay, vectors without."""
    trainable = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
