"""What all builders of optimisers have in common."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from caldpo.config.hydra_errors import install
from caldpo.errors import CaldpoError


class OptimizerChoice(ABC):
    """What ``optim=`` chooses: refuses early what it cannot do, and builds the optimiser with its schedule."""

    lr: float  # largest learning rate of the schedule
    eps: float | None = None  # added to the denominator
    rounds_stochastically = False  # half-precision weights take an update's digits beyond their last with its odds
    compiled_step = False  # torch.compile makes a kernel for each weight: nothing of a copy's size beside them

    def check(  # noqa: B027 (most refuse nothing)
        self, precision: str, *, sharded: bool = False, replicas: bool = False
    ) -> None:
        """Refuse what cannot be right, before any weights load.

        Args:
            precision: ``trainer.precision``.
            sharded: whether its state is sharded over ranks, be it with the weights or without them.
            replicas: whether several ranks update whole weights, each for itself.

        Raises:
            CaldpoError: it cannot.
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
    """Look whether the package behind an option is installed.

    Raises:
        CaldpoError: it is not, naming the extra that brings it.
    """
    if importlib.util.find_spec(package) is None:
        raise CaldpoError("not installed", key="optim", value=option, remedy=install("optim", option))


def refuse_sharded(option: str) -> None:
    """Raise for an optimiser whose state cannot be sharded over ranks."""
    raise CaldpoError(
        "cannot be sharded over devices",
        key="optim",
        value=option,
        remedy="choose optim=adamw, whose state is sharded as they are, or trainer.strategy=ddp",
    )
