"""How many parameters of a policy are trained; :mod:`caldpo.models.adapter_coverage` names what an adapter leaves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Trainable:
    """Parameters of a policy.

    Args:
        trained: how many take gradients; tied ones count once.
        total: how many there are, an adapter's included.
    """

    trained: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trained / max(self.total, 1)
        return f"{self.trained:,} of {self.total:,} parameters ({share:.3g} %)"


def find_trainable(policy: nn.Module) -> Trainable:
    """Count the parameters of a policy as it is going to be trained."""
    parameters = list(policy.parameters())  # tied ones once
    return Trainable(sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters))
