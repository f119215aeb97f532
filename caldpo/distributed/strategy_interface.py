"""What a run needs of a strategy beside Lightning's own interface, however the policy is spread over ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pytorch_lightning.strategies import Strategy

from caldpo.distributed.step_gradients import Gradients, LocalGradients

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class PolicyStrategy(ABC):
    """Shard the policy and find its gradients.

    Lightning's own strategies (one device, DDP) fulfil it through :class:`Replicated`; the project's subclasses of them
    (FSDP2, ZeRO-2) inherit it, and override Lightning's ``save_checkpoint`` and ``load_checkpoint`` as well, in which
    each rank writes and reads its own shards.
    """

    shards_weights = False  # each rank holds a part of the weights alone, so that all have to run a model together

    @abstractmethod
    def shard(self, model: PreTrainedModel) -> None:
        """Shard a model's weights over the ranks in place, once; all of them have to take part."""

    @abstractmethod
    def gradients(self, policy: nn.Module) -> Gradients:
        """Return the reduced gradients of the current optimiser step, between backward pass and update."""


class Replicated(PolicyStrategy):
    """Full weights, gradients and optimiser on each device: one device, or DDP."""

    def shard(self, model: PreTrainedModel) -> None:
        """Do nothing: every rank has the full weights."""

    def gradients(self, policy: nn.Module) -> Gradients:
        return LocalGradients(policy)


def policy_strategy(strategy: Strategy) -> PolicyStrategy:
    """Return the interface of a Trainer's strategy."""
    return strategy if isinstance(strategy, PolicyStrategy) else Replicated()
