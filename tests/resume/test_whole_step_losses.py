"""Runs whose loss reads whole optimiser steps, killed and resumed: what BCO remembers is saved as of a step's end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from caldpo.checkpointing.checkpoint_io import load_weights
from caldpo.checkpointing.manifest import checkpoint_folders
from tests.distributed.test_resume import RANKS, kill_and_resume
from tests.distributed.test_resume import outcome as sharded_outcome
from tests.evaluation.runs import write_data
from tests.resume.child import Kill
from tests.resume.runs import BASE, outcome, train

pytestmark = pytest.mark.slow

KILL, TERM = signal.SIGKILL, signal.SIGTERM
LORA = ("adapter=lora", "adapter.dropout=0.3", "reference=adapter")
LENGTH = ("trainer.max_steps=12",)
DDP = ("trainer.devices=2", "trainer.strategy=ddp", "data.micro_batch_size=2")


@pytest.mark.parametrize(
    ("more", "ranks", "kill"),
    [
        pytest.param(("loss=bco", *LORA), 1, Kill("step", 9, TERM), id="bco-lora-in-a-window"),
        pytest.param(("loss=bco",), 1, Kill("update", 6, KILL), id="bco-before-an-update"),
        pytest.param(("loss=kto", "reference=frozen", *DDP), 2, Kill("step", 15, KILL), id="kto-two-ranks"),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(more: tuple[str, ...], ranks: int, kill: Kill, tmp_path: Path) -> None:
    if "adapter=lora" in more:
        pytest.importorskip("peft")
    write_data(tmp_path)
    given = (*BASE, *LENGTH, *more)
    ended = train(tmp_path, *given, "hydra.run.dir=whole", ranks=ranks)
    assert set(ended.codes) == {0}, ended.said
    killed = train(tmp_path, *given, "hydra.run.dir=killed", kill=kill, ranks=ranks)
    assert killed.codes[0] == (-KILL if kill.number == KILL else 128 + kill.number), killed.said
    resumed = train(tmp_path, "resume=killed", ranks=ranks)
    assert set(resumed.codes) == {0}, resumed.said
    whole, found = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert [name for name in whole if found[name] != whole[name]] == []
    if "loss=bco" in more:
        assert "loss.rewards" in whole["weights"]


def test_sharded_weights_beside_what_the_loss_remembers(tmp_path: Path) -> None:
    write_data(tmp_path)
    given = (*BASE, *RANKS, "loss=bco")
    ended = train(tmp_path, *given, "hydra.run.dir=whole", ranks=2)
    assert ended.codes == (0, 0), ended.said
    kill_and_resume(tmp_path, given, Kill("step", 15, KILL), sharded_outcome(tmp_path / "whole"))
    remembered = load_weights(checkpoint_folders(tmp_path / "whole")[12])["loss.rewards"]
    assert remembered.dtype == torch.float64
    assert (remembered[:, 1] > 40).all()
