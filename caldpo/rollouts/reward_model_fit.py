"""Fit a reward model to the training pairs by Bradley-Terry: ``-log sigmoid(r(chosen) - r(rejected))``."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from caldpo.data.datamodule import PairDataModule
from caldpo.errors import CaldpoError
from caldpo.losses.terms import logistic
from caldpo.models.model_forward import evaluating
from caldpo.optim.optimizer_base import OptimizerChoice
from caldpo.types import PairBatch


class RewardModelFit(pl.LightningModule):
    """Trains a reward model on the same batches and with the same optimiser as a policy.

    Args:
        model: from a batch to the rewards of its chosen and its rejected responses.
        optim: builds the optimiser and its schedule.
    """

    def __init__(self, model: nn.Module, optim: OptimizerChoice) -> None:
        super().__init__()
        self.model, self.optim = model, optim

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return self.optim.build(self.model, steps, scaled=self.trainer.precision == "16-mixed")

    def on_fit_start(self) -> None:
        self.model.train()

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        if batch.filler:
            return torch.zeros((), device=self.device, requires_grad=True)
        chosen, rejected = self.model(batch)
        # the mean over the pairs of the whole optimiser step, whatever their micro-batches
        loss = torch.where(batch.weight > 0, logistic(chosen - rejected), 0).sum()
        micro_batches = self.trainer.accumulate_grad_batches
        return loss * micro_batches / batch.pairs_in_step(micro_batches)


def fit_reward_model(model: nn.Module, optim: OptimizerChoice, trainer: pl.Trainer, data: PairDataModule) -> None:
    """Train a reward model on the training pairs, for as many steps as the Trainer is built for."""
    trainer.fit(RewardModelFit(model, optim), data.train_dataloader())


def rewards_of(
    model: nn.Module, data: PairDataModule, split: str, trainer: pl.Trainer, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Compute the rewards of all chosen and rejected responses of a split, without gradient, float64 on the host."""
    rows = range(len(data.train_pairs if split == "train" else data.test_pairs))
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    with evaluating(model), trainer.precision_plugin.forward_context():
        for batch in data.batches(split, rows):
            for side, values in zip(sides, model(batch.to(device)), strict=True):
                side.append(values.double().cpu())
    return torch.cat(sides[0]), torch.cat(sides[1])


def require_rewards(rewards: Tensor, *, spread: bool = False) -> None:
    """Refuse a reward model that has diverged, or, where rewards are divided by their ``spread``, one without any.

    Raises:
        CaldpoError: with the keys of its training.
    """
    if not rewards.isfinite().all():
        raise CaldpoError(
            "the fitted reward model gives rewards that are non-finite (NaN or infinite)",
            key="rollouts",
            value="reward_model",
            remedy="lower rollouts.lr (null takes optim.lr), or set trainer.gradient_clip_val",
        )
    if spread and not (len(rewards) > 1 and rewards.std() > 0):
        raise CaldpoError(
            "divides by the standard deviation of the reward model's rewards, and all training responses have the same",
            key="rollouts.standardize",
            value="true",
            remedy="raise rollouts.steps or rollouts.lr, or set rollouts.standardize=false",
        )


def accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """Share of pairs whose chosen response has the higher reward, ties counted half."""
    return float(((chosen > rejected).double() + 0.5 * (chosen == rejected).double()).mean())
