"""Prompts with a known reward for a tiny policy, whose samples are trained on in a real Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.data.end_tokens import end_tokens
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.lightning_module import PreferenceModule
from caldpo.lightning_trainer import TrainerSettings
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.rebel import REBEL
from caldpo.models.dropout import dropout_rates, zero_settings
from caldpo.optim import AdamW, Schedule
from caldpo.reference.frozen_model import FrozenReference
from caldpo.rollouts.true_reward_rollouts import TrueReward
from caldpo.types import PairBatch
from tests.callbacks.oracle_data import OracleData, reward
from tests.helpers.tiny import tiny_model, tiny_tokenizer

STEP = 8  # prompts of an optimiser step


class Prompts(OracleData):
    """Eight training pairs, whose responses are not looked at, under a known reward."""

    layout = "padded"

    def __init__(self, micro: int = STEP, oracle: Callable[[str, str], float] = reward) -> None:
        super().__init__(oracle)
        self.micro, self.train_pairs = micro, TokenizedPairs(self.train[:])


class Kept(TrueReward):
    """Keeps the batches that it has drawn."""

    def draw(self, batch: PairBatch, batch_idx: int, module: PreferenceModule) -> tuple[PairBatch, dict[str, Tensor]]:
        drawn, metrics = super().draw(batch, batch_idx, module)
        if not hasattr(self, "drawn"):
            self.drawn: list[PairBatch] = []
            self.metrics: list[dict[str, Tensor]] = []
        self.drawn.append(drawn)
        self.metrics.append(metrics)
        return drawn, metrics


class Gradients(pl.Callback):
    """Keeps the gradient of each optimiser step, by name."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        named = module.policy.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def exact_model(seed: int) -> PreTrainedModel:
    """In float64 throughout, which Llama's norm is not; without dropout."""
    model = tiny_model("gpt2", seed=seed, dtype=torch.float64)
    zero_settings(model, dropout_rates(model))
    return model


def rollouts(seed: int = 0, max_new_tokens: int = 5) -> Kept:
    """Prepared to sample a tiny policy."""
    made = Kept(max_new_tokens=max_new_tokens, seed=seed)
    data, tokenizer = Prompts(), tiny_tokenizer()
    made.prepare(SimpleNamespace(data=data, tokenizer=tokenizer, policy=exact_model(0)))  # type: ignore[arg-type]
    assert made._ends == end_tokens(tokenizer, exact_model(0))
    return made


def trained(
    folder: Path,
    made: TrueReward,
    data: Prompts,
    loss: PreferenceLoss | None = None,
    *,
    steps: int = 1,
    accumulation: int = 1,
) -> tuple[PreferenceModule, list[dict[str, Tensor]]]:
    """Train a policy that is not its reference; returns the module and the gradient of each step."""
    module = PreferenceModule(
        exact_model(1),
        FrozenReference(exact_model(0)),
        loss or REBEL(beta=0.3),
        AdamW(Schedule("constant", warmup_steps=0), lr=1e-2),
        tiny_tokenizer(),
        reward_beta=0.1,
        same_start=False,
        rollouts=made,
    )
    folder.mkdir(exist_ok=True)
    kept = Gradients()
    settings = TrainerSettings(progress_bar=False, max_steps=steps, precision="64-true")
    settings.build(folder, [], [kept], accumulation).fit(module, data)
    return module, kept.steps
