"""Checkpoints of policy, optimiser and schedule every so many optimiser steps. The reference is in none."""

from __future__ import annotations

from pytorch_lightning.callbacks import ModelCheckpoint

from caldpo.config.bounds import PositiveInt
from caldpo.config.signature import validated


class Checkpoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint, the newest few, in ``checkpoints/`` of the run's folder.

    Args:
        every: optimiser steps between checkpoints; None writes none.
        keep: how many of the newest to keep.
    """

    @validated
    def __init__(self, every: PositiveInt | None = None, keep: PositiveInt = 1) -> None:
        super().__init__(
            filename="step-{step}",
            auto_insert_metric_name=False,
            monitor="step" if every else None,
            mode="max",
            save_top_k=keep if every else 0,
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
        )
