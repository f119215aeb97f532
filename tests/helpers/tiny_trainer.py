"""A tiny policy with its reference and random pairs, in a real Trainer, for tests to train."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from caldpo.data.batching import StepPlan
from caldpo.data.data_loading import PairBatches, PairLoader
from caldpo.data.pair import TokenizedPair
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.lightning_module import PreferenceModule
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from caldpo.losses.base import PreferenceLoss
from caldpo.optim import AdamW, Schedule
from caldpo.reference.frozen_model import FrozenReference
from tests.helpers.tiny import tiny_model, tiny_tokenizer


class Pairs(pl.LightningDataModule):
    """Random pairs behind the project's own sampler and loader."""

    def __init__(self, train: list[TokenizedPair], test: list[TokenizedPair], micro: int, **plan: Any) -> None:
        super().__init__()
        self.train, self.test, self.micro, self.plan = TokenizedPairs(train), TokenizedPairs(test), micro, plan

    def train_dataloader(self) -> PairLoader:
        accumulation = self.trainer.accumulate_grad_batches
        return self.loader(self.train, self.micro, accumulation=accumulation, seed=0, **self.plan)

    def val_dataloader(self) -> PairLoader:
        mismatched = self.plan.get("mismatched", False)
        return self.loader(self.test, 3, accumulation=-(-len(self.test) // 3), mismatched=mismatched)

    def loader(self, pairs: TokenizedPairs, micro: int, **keys: Any) -> PairLoader:
        plan = StepPlan(len(pairs), micro, world_size=self.trainer.world_size, **keys)
        return PairLoader(PairBatches(pairs, 0), plan.sampler(self.trainer.global_rank))


def make_module(loss: PreferenceLoss, lr: float = 1e-2, decay: str = "constant") -> PreferenceModule:
    policy = tiny_model()
    return PreferenceModule(
        policy,
        FrozenReference(copy.deepcopy(policy)),
        loss,
        AdamW(Schedule(decay, warmup_steps=0), lr=lr),
        tiny_tokenizer(),
        reward_beta=0.1,
    )


def shift_from_reference(module: PreferenceModule, size: float = 0.1) -> None:
    """Make both models float64, and the policy another than the reference, so that no log-ratio is 0."""
    module.policy.double()
    module.reference.model.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    module.same_start = False


def fit(module: PreferenceModule, data: Pairs, folder: Path, **settings: Any) -> pl.Trainer:
    callbacks = settings.pop("callbacks", [])
    folder.mkdir(parents=True, exist_ok=True)
    trainer = TrainerSettings(progress_bar=False, **settings).build(folder, [MetricsFile(folder)], callbacks)
    trainer.fit(module, data)
    return trainer
