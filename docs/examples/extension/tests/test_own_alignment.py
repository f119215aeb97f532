"""The loss by hand, the source's rows, and that the yamls compose; run by ``python -m pytest`` in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_alignment.colour_reward import reward
from own_alignment.colour_source import ColourQuestions
from own_alignment.hinge_loss import HingeLoss

import caldpo

CONF = Path(__file__).parents[1] / "conf"


def test_the_loss_by_hand() -> None:
    """Gaps of 2 + 1.5 nats and of 7 nats, for a margin of 5: 1.5, and 0 without a gradient."""
    chosen = torch.tensor([-20.0, -20.0], requires_grad=True)
    rejected = torch.tensor([-31.5, -35.0])
    reference = torch.tensor([-22.0, -24.0]), torch.tensor([-30.0, -32.0])
    logps = caldpo.PairLogps(chosen, rejected, *reference, torch.tensor([9.0, 9.0]), torch.tensor([14.0, 14.0]))
    output = HingeLoss(margin=5.0)(logps)
    output.loss.sum().backward()
    assert output.loss.tolist() == [1.5, 0.0]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [-1.0, 0.0]


def test_a_bad_margin_is_refused() -> None:
    with pytest.raises(caldpo.CaldpoError, match="margin"):
        HingeLoss(margin=-1)


def test_rows_are_pairs_with_rewards() -> None:
    source = ColourQuestions(train_pairs=8, test_pairs=4)
    rows = {split: [row.value for row in source.rows(split)] for split in ("train", "test")}
    assert [len(part) for part in rows.values()] == [8, 4]
    assert not {row["prompt"] for row in rows["train"]} & {row["prompt"] for row in rows["test"]}
    for row in rows["train"]:
        assert row["score_chosen"] == 1 - 0.05
        assert row["score_rejected"] == pytest.approx(-0.05 * len(row["rejected"].split()))
    assert reward("What colour is apple 3?", " yellow.") == -0.05, "no apple of ours is yellow"


def test_the_configuration_composes() -> None:
    overrides = ["loss=own_hinge", "loss.margin=3", "data=colours", "callbacks=floor", "callbacks.floor.floor=-2"]
    cfg = caldpo.compose(overrides, config_dir=CONF)
    assert (cfg.loss.margin, cfg.data.source.train_pairs, cfg.callbacks.floor.floor) == (3, 64, -2)
    assert cfg.callbacks.samples.prompts == 4, "the usual callbacks are there as well"
