"""Checkpoints of policy, optimiser and schedule every so many optimiser steps. The reference is in none."""

from __future__ import annotations

from typing import Literal

from pytorch_lightning.callbacks import ModelCheckpoint

from caldpo.config.bounds import PositiveInt
from caldpo.config.signature import validated


class Checkpoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint in ``checkpoints/`` of the run's folder.

    It watches no metric: watching one, it puts off the save at the last batch of an epoch until an evaluation
    that may never come.

    Args:
        every: optimiser steps between checkpoints; None writes none.
        keep: the last one, or all.
    """

    @validated
    def __init__(self, every: PositiveInt | None = None, keep: Literal["last", "all"] = "last") -> None:
        super().__init__(
            filename="step-{step}",
            auto_insert_metric_name=False,
            save_top_k=0 if every is None else 1 if keep == "last" else -1,
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
        )
