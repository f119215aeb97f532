"""Keys of Lightning's own Trainer that a run may be given: ``trainer.extra`` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
from pydantic import Field
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from caldpo.config.bounds import PositiveInt
from caldpo.config.signatures import validated
from caldpo.utils.collectives import is_first_rank

MaxTime = Annotated[
    str,
    Field(pattern=r"\A\d+:[0-2]\d:[0-5]\d:[0-5]\d\Z", description="a time as DD:HH:MM:SS, such as 00:12:00:00"),
]
PROFILE = "profile"  # a part of the names of a profiler's files in the run's folder


@validated
@dataclass(frozen=True, kw_only=True)
class TrainerExtra:
    """What Lightning's Trainer is given besides what follows from a run; ``conf/trainer/base.yaml`` explains each key.

    ``caldpo.config.lightning_keys`` says why its other arguments are none of these.
    """

    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    limit_val_batches: PositiveInt | None = None
    fast_dev_run: bool | PositiveInt = False
    max_time: MaxTime | None = None
    min_steps: PositiveInt | None = None
    overfit_batches: PositiveInt | None = None
    detect_anomaly: bool = False
    enable_model_summary: bool = False

    @property
    def dev_steps(self) -> int | None:
        """Optimiser steps, and held-out batches, of a ``fast_dev_run``; None of any other."""
        return int(self.fast_dev_run) or None

    def arguments(self, run_dir: Path) -> dict[str, Any]:
        """Build the Trainer's arguments; a profiler writes into the run's folder."""
        limit = self.dev_steps or self.limit_val_batches
        return {
            "profiler": self._profiler(run_dir),
            "limit_val_batches": 1.0 if limit is None else limit,
            "min_steps": self.min_steps,
            "detect_anomaly": self.detect_anomaly,
            "enable_model_summary": self.enable_model_summary,
        }

    def callbacks(self) -> list[pl.Callback]:
        """Build the callbacks that keys stand for."""
        return [] if self.max_time is None else [StepTimer(self.max_time)]

    def _profiler(self, run_dir: Path) -> Profiler | None:
        kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
        return None if self.profiler is None else kinds[self.profiler](dirpath=run_dir, filename=PROFILE)


class StepTimer(Timer):
    """Lightning's timer, which ends a run after an optimiser step, never within one; a resumed run goes on counting."""

    def __init__(self, max_time: str) -> None:
        super().__init__(max_time, interval="step", verbose=False)
        self._max_time, self._told = max_time, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        if trainer.should_stop and not self._told and is_first_rank():
            self._told = True
            print(f"trainer.extra.max_time={self._max_time}: training ends after {trainer.global_step} optimiser steps")
