"""Base of the optimiser builders: early checks, parameter groups, and the interface."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from caldpo.config.extras import install
from caldpo.errors import CaldpoError


class OptimizerChoice(ABC):
    """Checks settings early, and builds the optimiser with its schedule: what ``optim=`` chooses."""

    lr: float  # largest learning rate of the schedule
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

        Raises:
            CaldpoError: naming the key.
        """

    @abstractmethod
    def build(self, policy: nn.Module, total_steps: int, *, scaled: bool = False) -> dict[str, Any]:
        """Build Lightning's optimiser dictionary.

        Args:
            policy: whose trainable parameters are updated.
            total_steps: optimiser steps of the run, for the schedule.
            scaled: whether float16 arithmetic scales the gradients.
        """


def require_package(package: str, option: str) -> None:
    """Check that the package of an option is installed.

    Raises:
        CaldpoError: it is not, naming the extra that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise CaldpoError("not installed", key="optim", value=option, remedy=install("optim", option))


def refuse_sharded(option: str) -> None:
    """Raise for an optimiser whose state cannot be sharded over ranks."""
    raise CaldpoError(
        "cannot be sharded over devices",
        key="optim",
        value=option,
        remedy="choose optim=adamw, whose state is sharded like its weights, or trainer.strategy=ddp",
    )


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
