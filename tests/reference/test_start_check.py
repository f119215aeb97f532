"""Policy and reference have to be the same before the first step: on held-out pairs and on training pairs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from caldpo.data.batching import StepPlan
from caldpo.data.data_loading import PairBatches, PairLoader
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.errors import CaldpoError
from caldpo.losses.dpo import DPO
from caldpo.reference.frozen_model import FrozenReference
from caldpo.reference.tolerances import HALF_ROUNDING, check_start, largest_and_mean, start_ratios
from caldpo.types import PairLogps
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_model, tiny_pairs
from tests.helpers.tiny_trainer import Pairs, fit, make_module


class WrongFor(FrozenReference):
    """A reference whose log-probs of one split are off."""

    def __init__(self, split: str, model: Any) -> None:
        super().__init__(model)
        self.split = split

    def logps(self, batch: Any) -> Any:
        chosen, rejected = super().logps(batch)
        return (chosen - 0.5, rejected) if batch.split == self.split else (chosen, rejected)


class Named(Pairs):
    """Batches that carry the name of their split."""

    def loader(self, pairs: TokenizedPairs, micro: int, **keys: Any) -> PairLoader:
        batches = PairBatches(pairs, 0, split="train" if pairs is self.train else "test")
        return PairLoader(batches, StepPlan(len(pairs), micro, **keys).sampler())


@pytest.mark.parametrize("metrics_sync_every", [1, 3])
def test_a_wrong_table_of_training_pairs_is_noticed_with_the_first_row(metrics_sync_every: int, tmp_path: Path) -> None:
    """The held-out pairs' log-probs are right, so that the first evaluation shows nothing."""
    module = make_module(DPO())
    module.metrics_sync_every = metrics_sync_every
    module.reference = WrongFor("train", tiny_model())
    data = Named(tiny_pairs(12), tiny_pairs(4), 2)
    settings: dict[str, Any] = {"max_steps": 5, "accumulate_grad_batches": 2}
    with refused("reference", "log-probs", "training pairs", remedy="reference.cache"):
        fit(module, data, tmp_path, **settings)
    assert pd.read_csv(tmp_path / "metrics.csv")["loss"].notna().sum() == metrics_sync_every
    module.same_start, module.failure = False, None
    fit(module, data, tmp_path, **settings)


def test_dropout_is_no_wrong_table(tmp_path: Path) -> None:
    """In training a policy with dropout is another than in evaluation."""
    module = make_module(DPO())
    module.policy.model.layers[0].mlp.down_proj = torch.nn.Sequential(
        module.policy.model.layers[0].mlp.down_proj, torch.nn.Dropout(0.5)
    )
    fit(module, Pairs(tiny_pairs(8), tiny_pairs(4), 4), tmp_path, max_steps=2)
    assert pd.read_csv(tmp_path / "metrics.csv")["log_ratios/chosen"].iloc[0] != 0


def test_dropout_hides_no_wrong_table(tmp_path: Path) -> None:
    """Before the first step the policy is compared without its dropout."""
    module = make_module(DPO())
    module.policy.model.layers[0].mlp.down_proj = torch.nn.Sequential(
        module.policy.model.layers[0].mlp.down_proj, torch.nn.Dropout(0.5)
    )
    module.reference = WrongFor("train", tiny_model())
    with refused("reference", "log-probs", "training pairs", remedy="reference.cache"):
        fit(module, Named(tiny_pairs(12), tiny_pairs(4), 2), tmp_path, max_steps=2)


@pytest.mark.parametrize(
    ("scale", "is_refused"), [(1.0, False), (1 + 1e-3, False), (0.985, True), (float("nan"), True)]
)
def test_half_precision_hides_no_other_start(scale: float, is_refused: bool) -> None:
    """Log-probs of a table that is off by more than half precision's rounding are refused."""
    policy = -torch.linspace(5, 300, 40)
    logps = PairLogps(policy, policy, policy * scale, policy * scale, *torch.ones(2, 40), None, None)
    top, mean = largest_and_mean([start_ratios(logps, torch.ones(40))] * 2)
    if scale == scale:
        sizes = (scale - 1) * policy.abs() / (1 + policy.abs())
        assert (top, mean) == pytest.approx((sizes.abs().max().item(), sizes.abs().mean().item()), rel=1e-3, abs=1e-6)
    with pytest.raises(CaldpoError) if is_refused else contextlib.nullcontext():
        check_start(top, mean, torch.float32, torch.float32, HALF_ROUNDING)
