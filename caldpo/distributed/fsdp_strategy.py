"""Lightning's strategy for models sharded by FSDP2, with this project's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from transformers import PreTrainedModel

from caldpo.checkpointing.fsdp_checkpoint import load_sharded, save_sharded
from caldpo.distributed.fsdp import is_sharded, reshard, shard


class ShardedStrategy(ModelParallelStrategy):
    """Every rank keeps a part of each weight, gradient and optimiser state.

    Args:
        ranks: of all nodes together; the weights are sharded over all of them.
        cpu_offload: keep the parts in main memory.
    """

    def __init__(self, ranks: int, *, cpu_offload: bool = False) -> None:
        # parts in main memory are gathered and summed up there, too
        backend = "cpu:gloo,cuda:nccl" if cpu_offload and torch.cuda.is_available() else None
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, process_group_backend=backend)
        self.cpu_offload = cpu_offload

    def shard(self, model: PreTrainedModel) -> None:
        """Divide a model, unless it is already; all ranks have to take part. Known once the environment is set up."""
        if not is_sharded(model):
            mesh = self.device_mesh["data_parallel"]
            shard(model, mesh, self.root_device, cpu_offload=self.cpu_offload)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        reshard(self._trained)  # an evaluation may have come before
        super().setup_optimizers(trainer)
        own = {id(value) for value in self._trained.parameters()}
        held = {
            id(value) for optimizer in self.optimizers for group in optimizer.param_groups for value in group["params"]
        }
        assert held <= own, "the optimiser holds weights that are not trained"

    def model_to_device(self) -> None:
        """Nothing: parts are where they belong since they were sharded."""

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Nothing yet: a state is asked for in the form in which it is written, see :func:`save_sharded`."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        checkpoint.pop("optimizer_states", None)
        save_sharded(checkpoint, Path(filepath), self._trained, self.optimizers)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return load_sharded(Path(checkpoint_path), self._trained, self.optimizers)

    @property
    def _trained(self) -> torch.nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module
