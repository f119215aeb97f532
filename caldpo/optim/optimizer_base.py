"""Base of the optimiser builders: early checks, parameter groups, and learning-rate schedules."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction as Exact
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from caldpo.config.bounds import Fraction, NonNegativeInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError

Decay = Literal["constant", "linear", "cosine"]


class Schedule:
    """Linear warm-up from 0, then a decay to 0, to a floor or none, at the last step.

    Args:
        decay: shape after the warm-up.
        warmup_steps: optimiser steps of warm-up; None takes the ratio.
        warmup_ratio: share of all steps that is warm-up, rounded down (the first step of a warm-up has rate 0).
        min_lr_ratio: floor that the rate decays to, as a share of the peak.

    Raises:
        CaldpoError: a floor for a rate that does not decay.
    """

    @validated
    def __init__(
        self,
        decay: Decay = "cosine",
        warmup_steps: NonNegativeInt | None = None,
        warmup_ratio: Fraction = 0.1,
        min_lr_ratio: Fraction = 0.0,
    ) -> None:
        if min_lr_ratio and decay == "constant":
            raise CaldpoError(
                "has no effect on a rate that does not decay",
                key="min_lr_ratio",
                value=min_lr_ratio,
                remedy="set optim.schedule.decay=cosine or linear, or leave it out",
            )
        self.decay, self.warmup_steps, self.warmup_ratio = decay, warmup_steps, warmup_ratio
        self.min_lr_ratio = min_lr_ratio

    def attach(self, optimizer: torch.optim.Optimizer, total_steps: int) -> dict[str, Any]:
        """Make Lightning's optimiser dictionary, with the schedule stepped at every optimiser step."""
        scheduler = LambdaLR(optimizer, self.factor(total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def factor(self, total_steps: int) -> Callable[[int], float]:
        """Return the factor of the learning rate as a function of the optimiser steps done, of ``total_steps``."""
        warmup = share_of(self.warmup_ratio, total_steps) if self.warmup_steps is None else self.warmup_steps
        return functools.partial(
            rate_factor, decay=self.decay, warmup=warmup, total=total_steps, floor=self.min_lr_ratio
        )


def rate_factor(step: int, *, decay: Decay, warmup: int, total: int, floor: float = 0.0) -> float:
    """Compute the factor of the learning rate after ``step`` of ``total`` steps: transformers' schedules, bit for bit.

    A cosine with a floor is its ``cosine_with_min_lr``, by which a linear decay goes too.

    Its ``get_scheduler`` is not called because its module imports PEFT, and that bitsandbytes and torch's compiler.
    """
    if step < warmup:
        return step / max(1, warmup)
    if decay == "constant":
        return 1.0
    after_warmup = max(1, total - warmup)
    if decay == "linear":
        decayed = max(0.0, (total - step) / after_warmup)
    else:
        decayed = max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / after_warmup))))
    return decayed * (1.0 - floor) + floor


def share_of(ratio: float, steps: int) -> int:
    """Compute ``ratio`` of ``steps``, rounded down, with the ratio as written in decimal: 0.29 of 100 is 29.

    The float product is 28.999999999999996.
    """
    return math.floor(Exact(repr(float(ratio))) * steps)


class OptimizerChoice(ABC):
    """Checks settings early, and builds the optimiser with its schedule: what ``optim=`` chooses."""

    schedule: Schedule
    lr: float  # largest learning rate of the schedule
    weight_decay: float  # of matrices; decoupled from the gradient, but for RMSprop
    eps: float | None = None  # added to the denominator
    rounds_stochastically = False  # updates of half-precision weights are rounded at random, without bias
    compiled_step = False  # torch.compile makes a kernel for each weight, without a temporary copy

    def check(  # noqa: B027 (most refuse nothing)
        self, precision: str, *, sharded: bool = False, replicas: bool = False
    ) -> None:
        """Refuse settings that cannot be combined, before weights load.

        Args:
            precision: ``trainer.precision``.
            sharded: whether its state is sharded over ranks, with the weights or without them.
            replicas: whether several ranks update full weights, each on its own.
        """

    def build(self, policy: nn.Module, total_steps: int, *, scaled: bool = False) -> dict[str, Any]:
        """Build Lightning's optimiser dictionary for the policy's trainable parameters.

        Args:
            policy: the trained model.
            total_steps: optimiser steps of the run, for the schedule.
            scaled: whether float16 arithmetic scales the gradients.
        """
        return self.schedule.attach(self.optimizer(decay_groups(policy, self.weight_decay), scaled), total_steps)

    @abstractmethod
    def optimizer(self, groups: list[dict[str, Any]], scaled: bool) -> torch.optim.Optimizer:
        """Make the optimiser of these parameter groups; see :meth:`build`."""


def refused(option: str, why: str, remedy: str) -> CaldpoError:
    """Build the error about a chosen optimiser."""
    return CaldpoError(why, key="optim", value=option, remedy=remedy)


def refuse_sharded(option: str) -> None:
    """Raise for an optimiser whose state cannot be sharded over ranks."""
    remedy = "choose optim=adamw, whose state is sharded like its weights, or trainer.strategy=ddp"
    raise refused(option, "cannot be sharded over devices", remedy)


def can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Whether PyTorch has a fused kernel for all these parameters: floating point, on a CPU or CUDA."""
    devices = ("cuda", "cpu")
    return all(p.is_floating_point() and p.device.type in devices for group in groups for p in group["params"])


def decay_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group trainable parameters: matrices with weight decay, vectors without."""
    trainable = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
