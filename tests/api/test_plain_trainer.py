"""``PreferenceModule`` under a plain Trainer of Lightning, with batches from a plain DataLoader."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

import caldpo
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.bco import BCO
from caldpo.losses.cal_dpo import CalDPO
from caldpo.optim import AdamW, Schedule
from caldpo.reference.frozen_model import FrozenReference
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_model, tiny_pairs, tiny_tokenizer


class Descent:
    """Plain gradient descent, which shows the scale of a gradient; AdamW hides it."""

    def build(self, policy: torch.nn.Module, total_steps: int, *, scaled: bool) -> dict[str, Any]:
        return {"optimizer": torch.optim.SGD(policy.parameters(), lr=0.01)}


def module_of(loss: PreferenceLoss, optim: Any = None) -> caldpo.PreferenceModule:
    policy = tiny_model()
    reference = FrozenReference(copy.deepcopy(policy))
    optim = AdamW(Schedule("constant", warmup_steps=0), lr=1e-3) if optim is None else optim
    return caldpo.PreferenceModule(policy, reference, loss, optim, tiny_tokenizer(), reward_beta=0.1)


def loader(pairs: list[Any], size: int, **keys: Any) -> DataLoader[Any]:
    return DataLoader(pairs, batch_size=size, collate_fn=partial(caldpo.collate, pad_id=0, **keys))  # type: ignore[arg-type]


def trainer(folder: Path, **keys: Any) -> pl.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **{**quiet, **keys})


@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_a_step_is_that_of_the_mean_loss(size: int, accumulation: int, tmp_path: Path) -> None:
    """Two steps of plain descent over four pairs each, against the same by hand."""
    pairs, loss = tiny_pairs(8), CalDPO(beta=0.5)
    expected = module_of(loss)
    for rows in (pairs[:4], pairs[4:]):
        batch = caldpo.collate(rows, 0)
        expected.loss(expected.pair_logps(batch, with_reference=True)).loss.mean().backward()
        with torch.no_grad():
            for parameter in expected.policy.parameters():
                assert parameter.grad is not None
                parameter -= 0.01 * parameter.grad
                parameter.grad = None
    module = module_of(loss, Descent())
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulation).fit(module, loader(pairs, size))
    assert module.global_step == 2
    for found, wanted in zip(module.policy.parameters(), expected.policy.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_metrics_checkpoint_and_evaluation_are_lightnings(tmp_path: Path) -> None:
    train, test = tiny_pairs(12), tiny_pairs(6, seed=1)
    module = module_of(CalDPO(beta=0.5))
    logger = CSVLogger(tmp_path, name="", version="")
    fitted = trainer(tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1, enable_checkpointing=True)
    fitted.fit(module, loader(train, 4), loader(test, 3))
    logger.save()
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert rows["loss"].notna().sum() == 6
    assert rows["val/loss"].notna().sum() >= 2
    with torch.no_grad():
        logps = module.pair_logps(caldpo.collate(test, 0), with_reference=True)
    assert module.latest["val/loss"] == pytest.approx(module.loss(logps).loss.mean().item(), rel=1e-4)
    assert module.latest["val/log_ratios/chosen"] == pytest.approx(logps.chosen_log_ratio.mean().item(), abs=1e-4)
    (saved,) = tmp_path.rglob("*.ckpt")
    kept = torch.load(saved, weights_only=True)["state_dict"]
    assert kept.keys() == {f"policy.{name}" for name in module.policy.state_dict()}, "no reference in it"
    again = module_of(CalDPO(beta=0.5))
    again.load_state_dict(kept)
    again.same_start = False  # its weights have been trained
    trainer(tmp_path).validate(again, loader(test, 6), verbose=False)
    assert again.latest["val/loss"] == pytest.approx(module.latest["val/loss"], rel=1e-5)


def test_a_loss_that_reads_the_whole_step_is_refused(tmp_path: Path) -> None:
    with refused(key="loss", remedy="caldpo.fit"):
        trainer(tmp_path, max_steps=1).fit(module_of(BCO()), loader(tiny_pairs(4), 2))
