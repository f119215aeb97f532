"""Optimisers and learning-rate schedules, as small builders whose signatures are the yaml's schema."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn
from transformers import get_scheduler

from caldpo.config.bounds import Fraction, NonNegative, NonNegativeInt, Positive
from caldpo.config.signature import validated

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
    """AdamW; weight decay spares biases and norms (parameters with fewer than two dimensions)."""

    @validated
    def __init__(
        self,
        schedule: Schedule,
        lr: Positive = 1e-6,
        beta1: Fraction = 0.9,
        beta2: Fraction = 0.999,
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
    ) -> None:
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay
        self.betas, self.eps = (beta1, beta2), eps

    def build(self, policy: nn.Module, total_steps: int) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(
            decay_groups(policy, self.weight_decay), lr=self.lr, betas=self.betas, eps=self.eps
        )
        return self.schedule.attach(optimizer, total_steps)


class RMSprop:
    """RMSprop, the optimiser of the DPO reference implementation and of the paper's Pythia runs."""

    @validated
    def __init__(
        self,
        schedule: Schedule,
        lr: Positive = 5e-7,
        smoothing: Fraction = 0.99,
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
    ) -> None:
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay
        self.smoothing, self.eps = smoothing, eps

    def build(self, policy: nn.Module, total_steps: int) -> dict[str, Any]:
        optimizer = torch.optim.RMSprop(
            decay_groups(policy, self.weight_decay), lr=self.lr, alpha=self.smoothing, eps=self.eps
        )
        return self.schedule.attach(optimizer, total_steps)


def decay_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay, vectors without."""
    trainable = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
