"""The Lightning Trainer from its settings."""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies import Strategy

from caldpo.checkpointing.checkpoint_io import CheckpointFolders
from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.distributed.deepspeed_config import ZERO2, check_zero
from caldpo.errors import CaldpoError
from caldpo.lightning_module import PreferenceModule
from caldpo.models.compilation import CompiledLayers
from caldpo.trainer_extra import TrainerExtra
from caldpo.utils.devices import resolve_accelerator, resolve_precision


@validated
@dataclass(kw_only=True)
class TrainerSettings:
    """Settings of Lightning's Trainer, in optimiser steps throughout; ``conf/trainer/base.yaml`` explains each.

    With ``metrics_sync_every=1`` the host waits for the device at every step, and a non-finite gradient is found before
    it meets the weights; ``on_nonfinite=skip`` does so whatever that is.
    """

    accelerator: Literal["cpu", "gpu", "auto"] = "cpu"
    devices: PositiveInt = 1
    num_nodes: PositiveInt = 1
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed_stage_2"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"] = "32-true"
    max_steps: PositiveInt | None = None
    max_epochs: Positive = 1
    accumulate_grad_batches: PositiveInt = 1
    gradient_clip_val: Positive | None = None
    val_check_interval: PositiveInt | None = None
    num_threads: PositiveInt | None = None
    deterministic: bool = False
    progress_bar: bool = True
    metrics_sync_every: PositiveInt = 1
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    compile: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped_steps: NonNegativeInt = 100
    cpu_offload: bool = False
    extra: TrainerExtra = field(default_factory=TrainerExtra)

    def __post_init__(self) -> None:
        self.accelerator = resolve_accelerator(self.accelerator)  # type: ignore[assignment]  # one of the same names
        self.precision = resolve_precision(self.precision, self.accelerator)  # type: ignore[assignment]  # likewise
        if (steps := self.extra.dev_steps) is not None:
            self.max_steps, self.val_check_interval = steps, None

    def check(self) -> None:
        """Refuse settings that this machine or the strategy does not support, before any weights load."""
        if self.is_sharded and self.precision == "16-mixed":
            raise CaldpoError(
                "scales its gradients, which the sharded ones of trainer.strategy=fsdp are not tested with",
                key="trainer.precision",
                value=self.precision,
                remedy="set trainer.precision=bf16-mixed",
            )
        if self.strategy == ZERO2:
            check_zero(self.precision)
        if self.shards_optimizer and self.compile:
            raise CaldpoError(
                f"is not tested with trainer.strategy={self.strategy}",
                key="trainer.compile",
                value="true",
                remedy="leave it out",
            )
        if self.cpu_offload and not self.shards_optimizer:
            raise CaldpoError(
                "requires a sharded strategy",
                key="trainer.cpu_offload",
                value="true",
                remedy="choose trainer=fsdp or trainer=deepspeed_zero2, or leave it out",
            )
        if self.accelerator == "gpu" and torch.cuda.device_count() < self.devices:
            raise CaldpoError(
                f"{self.devices} GPU(s) wanted and {torch.cuda.device_count()} found",
                key="trainer.devices" if torch.cuda.is_available() else "trainer.accelerator",
                value=self.devices if torch.cuda.is_available() else "gpu",
                remedy="use trainer=cpu, or another number of trainer.devices",
            )

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are sharded over the devices."""
        return self.strategy == "fsdp"

    @property
    def shards_optimizer(self) -> bool:
        """Whether the optimiser's state is sharded over the devices, with the weights or without them."""
        return self.is_sharded or self.strategy == ZERO2

    @property
    def world_size(self) -> int:
        """Devices of all nodes together."""
        return self.devices * self.num_nodes

    def for_steps(self, steps: int) -> TrainerSettings:
        """Return the same settings for a training of so many optimiser steps, without evaluations on the way."""
        return replace(self, max_steps=steps, val_check_interval=None, extra=TrainerExtra())

    def extent(self) -> dict[str, Any]:
        """Return the Trainer's arguments of :meth:`caldpo.data.data_loading.TokenizedDataModule.plan_steps`."""
        return {
            "accumulation": self.accumulate_grad_batches,
            "world_size": self.world_size,
            "max_epochs": self.max_epochs,
            "max_steps": self.max_steps,
            "overfit_batches": self.extra.overfit_batches,
        }

    def build(
        self,
        run_dir: Path,
        loggers: list[Logger],
        callbacks: list[pl.Callback],
        accumulation: int | None = None,
        steps: int | None = None,
    ) -> pl.Trainer:
        """Build the Trainer; every file it writes is in ``run_dir``.

        Args:
            accumulation: micro-batches per optimiser step and device, in place of ``accumulate_grad_batches``.
            steps: optimiser steps of the run, which a part of an epoch has to be given in.
        """
        max_steps = self.max_steps
        if max_steps is None and self.max_epochs != int(self.max_epochs):
            if steps is None:
                raise RuntimeError(f"how many steps {self.max_epochs} epochs are has to be planned first")
            max_steps = steps
        accumulation = self.accumulate_grad_batches if accumulation is None else accumulation
        _silence_advice()
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        torch.set_float32_matmul_precision(self.matmul_precision)  # a process keeps it: the next run sets its own
        # the checkpoint callback reacts to Slurm's signal, and requeueing is left to the launcher
        slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
        compiled = [CompiledLayers()] if self.compile else []
        bar = [StepProgress(leave=False)] if self.progress_bar else []
        plugin = []
        if self.strategy == ZERO2:
            from caldpo.distributed.deepspeed_strategy import zero_precision

            plugin = [zero_precision(self.precision, self.accelerator)]
        return pl.Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self._strategy(),
            precision=None if plugin else self.precision,  # type: ignore[arg-type]  # no more "auto" in it
            max_steps=-1 if max_steps is None else max_steps,
            max_epochs=int(self.max_epochs) if max_steps is None else -1,
            accumulate_grad_batches=accumulation,
            gradient_clip_val=self.gradient_clip_val,
            # in batches, and with None in the field of epochs counted across epochs
            val_check_interval=self.val_check_interval and self.val_check_interval * accumulation,
            check_val_every_n_epoch=None if self.val_check_interval else 1,
            num_sanity_val_steps=0,  # step 0 is evaluated in full instead
            log_every_n_steps=1,
            deterministic=self.deterministic,
            use_distributed_sampler=False,  # the data has its own sampler, exact over ranks
            enable_progress_bar=self.progress_bar,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            plugins=[CheckpointFolders(), *slurm, *plugin],
            default_root_dir=run_dir,
            logger=loggers,
            callbacks=[*bar, FetchOnException(), *compiled, *self.extra.callbacks(), *callbacks],
            **self.extra.arguments(run_dir),
        )

    def _strategy(self) -> str | Strategy:
        if self.strategy == ZERO2:
            from caldpo.distributed.deepspeed_strategy import ZeroStrategy

            return ZeroStrategy(cpu_offload=self.cpu_offload, half=self.precision == "bf16-true")
        if not self.is_sharded:
            return self.strategy
        from caldpo.distributed.fsdp_strategy import FsdpStrategy

        return FsdpStrategy(self.world_size, cpu_offload=self.cpu_offload)


class StepProgress(RichProgressBar):
    """Lightning's bar of an epoch, with the optimiser steps done of all in its label."""

    def _get_train_description(self, current_epoch: int) -> str:
        total = int(self.trainer.estimated_stepping_batches)
        return f"Epoch {current_epoch} from step {self.trainer.global_step}/{total}"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)  # Lightning's number of the run, which has a folder instead
        # plain numbers: logged tensors would be fetched at every step
        return items | pl_module.progress if isinstance(pl_module, PreferenceModule) else items


class FetchOnException(pl.Callback):
    """Logs the rows that are still on the device before an exception ends the run."""

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        # A failed device cannot be read, and the exception matters more than what follows from it.
        with contextlib.suppress(Exception):
            pl_module.fetch_rows(alone=True)


def _silence_advice() -> None:
    """Silence Lightning's advice that does not apply here; its other warnings stay."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        "does not have many workers",
        "Checkpoint directory",
        "Experiment logs directory",
        "treespec, LeafSpec",
    ):
        warnings.filterwarnings("ignore", f".*{text}.*")
