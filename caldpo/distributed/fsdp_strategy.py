"""Train a policy sharded by FSDP2 under Lightning, with the project's sharded checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from transformers import PreTrainedModel

from caldpo.distributed.fsdp import is_sharded, reshard, shard
from caldpo.distributed.fsdp_checkpoint import load_sharded, save_sharded
from caldpo.distributed.strategy_interface import ShardedStrategy


class FsdpStrategy(ShardedStrategy, ModelParallelStrategy):
    """Keep a shard of each weight, gradient and optimiser state on every rank.

    Args:
        ranks: of all nodes together; the weights are sharded over all of them.
        cpu_offload: keep the shards in main memory.
    """

    shards_weights = True

    def __init__(self, ranks: int, *, cpu_offload: bool = False) -> None:
        # shards in main memory are gathered and reduced there, too
        backend = "cpu:gloo,cuda:nccl" if cpu_offload and torch.cuda.is_available() else None
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, process_group_backend=backend)
        self.cpu_offload = cpu_offload

    def shard(self, model: PreTrainedModel) -> None:
        if not is_sharded(model):
            shard(model, self.device_mesh["data_parallel"], self.root_device, cpu_offload=self.cpu_offload)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        reshard(self._module)  # an evaluation may have come before
        super().setup_optimizers(trainer)
        own = {id(value) for value in self._module.parameters()}
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        assert all(id(value) in own for group in groups for value in group["params"]), "an optimiser of other weights"

    def model_to_device(self) -> None:
        """Do nothing: shards are placed when a model is sharded."""

    def save_shards(self, checkpoint: dict[str, Any], folder: Path) -> None:
        save_sharded(checkpoint, folder, self._module, self.optimizers)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return load_sharded(Path(checkpoint_path), self._module, self.optimizers)
