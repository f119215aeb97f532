"""Callbacks that watch a metric say before weights load where it is measured too rarely for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytorch_lightning.callbacks import EarlyStopping

from caldpo import training_run
from caldpo.callbacks.too_few_evaluations import too_few_evaluations
from caldpo.checkpointing.checkpoint_callback import Checkpoints
from tests.evaluation.runs import inside, write_data
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.stopped import RUN


@pytest.mark.parametrize(
    ("steps", "per_epoch", "interval", "patience", "ends", "chooses"),
    [
        (100, 500, 10, 3, True, True),
        (50, 500, 10, 3, True, True),  # at 40 it can be the third that is not better
        (40, 500, 10, 3, False, True),  # the fourth is after the last step
        (6, 500, 50, 3, False, False),
        (6, 6, None, 3, False, False),
        (7, 6, None, 1, False, True),
        (13, 6, None, 1, True, True),
        (13, 6, None, 0, True, True),
    ],
)
def test_how_many_are_needed(
    steps: int, per_epoch: int, interval: int | None, patience: int, ends: bool, chooses: bool
) -> None:
    callbacks = {"early": EarlyStopping("val/loss", patience=patience), "kept": Checkpoints(monitor="val/loss")}
    notes = list(too_few_evaluations(callbacks, steps=steps, steps_per_epoch=per_epoch, val_check_interval=interval))
    assert [note.split()[0] for note in notes] == [
        *([] if ends else ["callbacks.early"]),
        *([] if chooses else ["callbacks.kept.monitor"]),
    ]
    for note in notes:
        names(note, "trainer.val_check_interval")


def test_what_watches_nothing_or_stops_at_a_threshold_needs_none_or_one() -> None:
    callbacks = {"kept": Checkpoints(), "early": EarlyStopping("val/loss", patience=9, stopping_threshold=0.1)}
    assert not list(too_few_evaluations(callbacks, steps=9, steps_per_epoch=9, val_check_interval=8))


def test_a_run_says_it_before_weights_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise RuntimeError("weights load")

    monkeypatch.setattr(training_run, "load_checked_policy", load)
    write_data(tmp_path, 32)  # steps of 8 pairs: 4 in an epoch
    with inside(tmp_path):
        early = ("callbacks=early_stopping", "trainer.val_check_interval=null", "trainer.max_steps=3")
        train(*RUN, *early, fails=1)
        said = capsys.readouterr().out
        names(said, "note: callbacks.early_stopping cannot end training", "note: callbacks.checkpoint.monitor")
        train(*RUN, *early, "trainer.extra.fast_dev_run=true", fails=1)
        assert "cannot end" not in capsys.readouterr().out
