"""Seed random draws, such as dropout's, by the position in the run: a resumed run draws the same."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch


class Reseed(pl.Callback):
    """Seeds every generator before each micro-batch of training, from the run's seed, the step, the batch and the rank.

    No generator has to be saved, draws in between (evaluation, samples) do not shift those of training, and each rank
    has its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        place = (self.seed, trainer.global_step, batch_idx, trainer.global_rank)
        drawn = np.random.SeedSequence(place).generate_state(3)
        random.seed(int(drawn[0]))
        np.random.seed(int(drawn[1]))
        if trainer.strategy.root_device.type == "cpu":
            # torch.manual_seed formats a stack trace for each kind of device that is not in use
            torch.default_generator.manual_seed(int(drawn[2]))
        else:
            torch.manual_seed(int(drawn[2]))  # of all devices
