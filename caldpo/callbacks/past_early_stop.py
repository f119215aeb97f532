"""Past the evaluation at which early stopping ended a run that is made longer."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason


class PastEarlyStop(pl.Callback):
    """Let a run go on where it is made longer, though early stopping ends it there.

    The evaluation at that place is repeated, and early stopping decides as before; its wait counter is then set to
    zero. To stand behind it in the list of callbacks.

    Args:
        step: optimiser steps at which the run is made longer.
        tell: called where early stopping had decided to end it, on all ranks.
    """

    def __init__(self, step: int, tell: Callable[[], None]) -> None:
        self.step, self.tell = step, tell

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        stopping = [
            callback
            for callback in trainer.early_stopping_callbacks
            if callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
        ]
        if trainer.global_step != self.step or not stopping:
            return
        for callback in stopping:
            callback.wait_count, callback.stopping_reason = 0, EarlyStoppingReason.NOT_STOPPED
        trainer.should_stop = False
        self.tell()
