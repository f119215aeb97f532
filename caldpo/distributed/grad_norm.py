"""A step's gradient, wherever the run's strategy keeps it: its norm, its clipping, and leaving it out."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from caldpo.distributed.fsdp import whole


class Gradients(Protocol):
    """Of one optimiser step, reduced over ranks, before they meet the weights."""

    def norm(self) -> Float[Tensor, ""]:
        """Euclidean norm of all together, on every rank, which all have to ask; NaN or infinite where an entry is."""
        ...

    def clip(self, largest: float, norm: Float[Tensor, ""]) -> None:
        """Scale them so that their norm, which is at hand, is at most ``largest``."""
        ...

    def discard(self) -> None:
        """Leave this step's update out: weights and the optimiser's state stay as they are."""
        ...


class OwnGradients:
    """In each weight's ``grad``: whole, or this rank's part of a sharded weight."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy

    def norm(self) -> Float[Tensor, ""]:
        return whole(get_total_norm([p.grad for p in self._trained() if p.grad is not None]))

    def clip(self, largest: float, norm: Float[Tensor, ""]) -> None:
        clip_grads_with_norm_(self._trained(), largest, norm)  # by the norm at hand, not another of its own

    def discard(self) -> None:
        for parameter in self.policy.parameters():
            parameter.grad = None  # an optimiser leaves alone what has no gradient: weights and its own state

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.policy.parameters() if p.grad is not None]


def gradients_of(module: Any) -> Gradients:
    """Where the gradients of a training module lie: its strategy's to say, else in its policy's weights."""
    strategy = None if module._trainer is None else module.trainer.strategy
    kept: Gradients | None = getattr(strategy, "gradients", None)
    return OwnGradients(module.policy) if kept is None else kept


def clip_factor(largest: float, norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """What gradients of this norm are multiplied by, as PyTorch clips them: at most 1, and NaN where the norm is."""
    return torch.clamp(largest / (norm + 1e-6), max=1.0)
