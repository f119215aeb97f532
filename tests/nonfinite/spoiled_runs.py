"""Runs with a non-finite loss of chosen pairs, or a non-finite gradient, on pairs that know their origins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from caldpo.data.batching import StepPlan
from caldpo.data.data_loading import PairBatches, PairLoader
from caldpo.data.pair import TokenizedPair
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.lightning_module import PreferenceModule
from caldpo.losses.cal_dpo import CalDPO
from caldpo.nonfinite.guard import NonFiniteGuard
from caldpo.types import LossOutput, PairLogps
from tests.helpers.tiny import tiny_pairs
from tests.helpers.tiny_trainer import Pairs, make_module

SPOILED_SCORE = 7.0  # of a pair whose calibration term is made infinite


class SpoiledCalDPO(CalDPO):
    """Cal-DPO whose calibration is infinite for pairs with a certain score."""

    def forward(self, logps: PairLogps) -> LossOutput:
        output = super().forward(logps)
        bad = torch.where(logps.score_chosen == SPOILED_SCORE, torch.inf, 0.0)
        terms = {**output.terms, "calibration": output.terms["calibration"] + bad}
        return LossOutput(output.loss + bad * logps.policy_chosen, terms)


class PairsWithOrigins(Pairs):
    """Pairs that know the lines they come from."""

    def loader(self, pairs: TokenizedPairs, micro: int, **keys: Any) -> PairLoader:
        split = "train" if pairs is self.train else "test"
        plan = StepPlan(len(pairs), micro, world_size=self.trainer.world_size, **keys)
        return PairLoader(PairBatches(pairs, 0, split=split), plan.sampler(self.trainer.global_rank))

    def origin(self, index: int, split: str) -> str:
        return f"{split}.jsonl:{index + 1}"


def pairs_with_spoiled(count: int, spoiled: Iterable[int] = ()) -> list[TokenizedPair]:
    """Random pairs, some of them with the score that spoils the loss."""
    return [dataclasses.replace(p, score_chosen=SPOILED_SCORE) if p.index in spoiled else p for p in tiny_pairs(count)]


def guarded_module(action: Any = "stop", max_skipped: int = 100, metrics_sync_every: int = 1) -> PreferenceModule:
    module = make_module(SpoiledCalDPO(beta=0.5), decay="linear")
    module.nonfinite = NonFiniteGuard(action, max_skipped)
    module.metrics_sync_every = 1 if action == "skip" else metrics_sync_every
    return module


class SpoilGradient(pl.Callback):
    """Make one entry of one parameter's gradient NaN, at some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        if trainer.global_step in self.steps:
            module.policy.model.layers[1].mlp.up_proj.weight.grad[0, 0] = float("nan")


def dumps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "nonfinite_batches").glob("*"))
