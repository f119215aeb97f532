"""Train with DeepSpeed's ZeRO-2 under Lightning, with the project's step counting, clipping and checkpoints.

DeepSpeed partitions, reduces and updates. Lightning counts micro-batches, as under every other strategy, and passes
DeepSpeed the end of each step; the training module checks and clips gradients, between the backward pass and the
update; nothing is saved as a pickle.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import HalfPrecision, MixedPrecision, Precision
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, ParallelStrategy, Strategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from caldpo.distributed.deepspeed_config import engine_config, require_dtype
from caldpo.distributed.step_gradients import Gradients, LocalGradients, ZeroGradients
from caldpo.distributed.strategy_interface import ShardedStrategy
from caldpo.distributed.zero_checkpoint import load_zero, save_zero


def zero_precision(precision: str, accelerator: str) -> Precision:
    """Build the precision plugin of other strategies: DeepSpeed's own makes ``bf16-mixed`` something else."""
    if precision == "bf16-mixed":
        on_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
        return MixedPrecision("bf16-mixed", "cuda" if on_gpu else "cpu")
    return HalfPrecision("bf16-true") if precision == "bf16-true" else Precision()


class ZeroStrategy(ShardedStrategy, DeepSpeedStrategy):
    """Keep the full weights on every rank, and its partition of gradients and optimiser (ZeRO's stage 2).

    Args:
        cpu_offload: keep gradients and optimiser in main memory.
        half: the weights are bfloat16; float32 copies of them are partitioned over the ranks and updated.
    """

    def __init__(self, *, cpu_offload: bool, half: bool) -> None:
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is imported
        super().__init__(config=engine_config(half=half, offload=cpu_offload))
        self.half = half
        self._gradients: ZeroGradients | None = None  # while the run trains
        self._engine: Any = None
        self._last_micro_batch = False

    # -- set-up

    def connect(self, model: Any) -> None:
        require_dtype(model, torch.bfloat16 if self.half else torch.float32)
        super().connect(model)

    def setup_environment(self) -> None:
        ParallelStrategy.setup_environment(self)  # Lightning's own refuses every device but CUDA's
        import deepspeed

        DDPStrategy.setup_distributed(self)
        self._set_node_environment_variables()  # DeepSpeed reads LOCAL_RANK, which not every launcher sets
        deepspeed.init_distributed(self._process_group_backend, auto_mpi_discovery=False, verbose=False)

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self._module)
        self.model_to_device()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
            self._start_engine()
            self._gradients = ZeroGradients(self._engine.optimizer, self.root_device)
        self.setup_precision_plugin()
        self.barrier()

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        Strategy.setup_optimizers(self, trainer)  # Lightning's own leaves them to DeepSpeed
        assert len(self.optimizers) == 1, "DeepSpeed partitions one optimiser"

    def _start_engine(self) -> None:
        """Start DeepSpeed's engine; the optimiser gets this rank's float32 copies in place of the weights."""
        import deepspeed

        self._engine, *_ = deepspeed.initialize(
            args=Namespace(device_rank=self.root_device.index or 0),
            config=self.config,
            model=self._module,
            model_parameters=[p for p in self._module.parameters() if p.requires_grad],
            optimizer=self.optimizers[0],
            dist_init_required=False,
        )
        self.optimizers = [self._engine.optimizer]  # DeepSpeed's wrapper

    def teardown(self) -> None:
        if self._engine is not None:
            for hook in (self._engine.module_forward_pre_hook, self._engine.module_forward_post_hook):
                hook.remove()
            self._engine.destroy()
            self._engine = self._gradients = None
        super().teardown()
        self.optimizers, self.lr_scheduler_configs = [], []  # they hold copies of the weights

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Do nothing: weights are loaded before the strategy is connected."""
        yield

    @property
    def handles_gradient_accumulation(self) -> bool:
        return False

    # -- a step

    def gradients(self, policy: torch.nn.Module) -> Gradients:
        return LocalGradients(policy) if self._gradients is None else self._gradients

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self._module
        original, step = module.forward, module.training_step

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.precision_plugin.train_step_context():  # inside the engine, which exits any other autocast
                return step(*args, **kwargs)

        module.forward = forward
        try:
            return self._engine(*args, **kwargs)
        finally:
            module.forward = original

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.val_step_context():
            return self._module.validation_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        self._engine.set_gradient_accumulation_boundary(self._last_micro_batch)
        self._engine.backward(closure_loss)
        return closure_loss

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        assert self._gradients is not None
        self._last_micro_batch, self._gradients.discarded = True, False
        try:
            result = self.precision_plugin._wrap_closure(self._module, optimizer, closure)  # ends with the clipping
        finally:
            self._last_micro_batch = False
        if not self._gradients.discarded:
            self._engine.step()
        return result

    # -- checkpoints

    def save_shards(self, checkpoint: dict[str, Any], folder: Path) -> None:
        save_zero(checkpoint, folder, self._engine.optimizer)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return load_zero(Path(checkpoint_path), self._module, self._engine.optimizer)
