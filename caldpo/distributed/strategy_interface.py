"""What a run needs of a strategy besides Lightning's own interface, however the policy is spread over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import Strategy
from torch import nn
from transformers import PreTrainedModel

from caldpo.distributed.step_gradients import Gradients, LocalGradients


class PolicyStrategy:
    """Shard the policy and find its gradients; by itself for Lightning's own strategies (one device, DDP).

    Those have full weights, gradients and optimiser on each device.
    """

    shards_weights = False  # each rank holds a part of the weights alone, so that all have to run a model together

    def shard(self, model: PreTrainedModel) -> None:
        """Shard a model's weights over the ranks in place, once; all of them have to take part."""

    def gradients(self, policy: nn.Module) -> Gradients:
        """Return the reduced gradients of the current optimiser step, between backward pass and update."""
        return LocalGradients(policy)


class ShardedStrategy(PolicyStrategy, Strategy):
    """Base of the project's strategies (FSDP2, ZeRO-2): each rank writes and reads its own shards of a checkpoint."""

    def save_shards(self, checkpoint: dict[str, Any], folder: Path) -> None:
        """Write a checkpoint with this rank's part of the optimiser."""
        raise NotImplementedError

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        checkpoint.pop("optimizer_states", None)
        self.save_shards(checkpoint, Path(filepath))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return nothing: the state is read in the form in which it is written, see :meth:`save_shards`."""
        return {}

    @property
    def _module(self) -> pl.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module


def policy_strategy(strategy: Strategy) -> PolicyStrategy:
    """Return the interface of a Trainer's strategy."""
    return strategy if isinstance(strategy, PolicyStrategy) else PolicyStrategy()
