"""Keys of Lightning's own Trainer: which are passed on, what they do, and why the others are not."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from caldpo.config.lightning_keys import REFUSED
from caldpo.data.batching import StepPlan
from caldpo.lightning_trainer import TrainerSettings
from caldpo.losses.dpo import DPO
from caldpo.trainer_extra import StepTimer, TrainerExtra
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_pairs
from tests.helpers.tiny_trainer import Pairs, make_module


def built(folder: Path, steps: int | None = None, **keys: Any) -> pl.Trainer:
    return TrainerSettings(progress_bar=False, **keys).build(folder, [], [], steps=steps)


def test_every_argument_is_passed_on_or_has_a_reason() -> None:
    """Held against the installed Lightning: an argument that a later version brings has to be decided on."""
    arguments = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    passed_on = {field.name for field in fields(TrainerExtra)}
    assert passed_on | REFUSED.keys() == arguments
    assert not passed_on & REFUSED.keys()


def test_remedies_name_keys_that_there_are() -> None:
    own = {field.name for field in fields(TrainerSettings)} | {f"extra.{field.name}" for field in fields(TrainerExtra)}
    for _, remedy in REFUSED.values():
        for word in remedy.replace("=", " ").replace(",", " ").split():
            if word.startswith("trainer."):
                assert word.removeprefix("trainer.") in own


def test_they_arrive(tmp_path: Path) -> None:
    extra = TrainerExtra(limit_val_batches=3, min_steps=4, detect_anomaly=True, max_time="00:00:00:30")
    trainer = built(tmp_path, max_steps=9, extra=extra)
    assert (trainer.limit_val_batches, trainer.min_steps, trainer._detect_anomaly) == (3, 4, True)
    (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, StepTimer))
    assert timer._duration == 30.0
    plain = built(tmp_path)
    assert (plain.limit_val_batches, plain.min_steps, plain._detect_anomaly) == (1.0, None, False)
    assert not [callback for callback in plain.callbacks if isinstance(callback, StepTimer)]


@pytest.mark.parametrize(
    ("name", "kind"), [("simple", SimpleProfiler), ("advanced", AdvancedProfiler), ("pytorch", PyTorchProfiler)]
)
def test_a_profiler_writes_into_the_runs_folder(name: Any, kind: type, tmp_path: Path) -> None:
    profiler = built(tmp_path, extra=TrainerExtra(profiler=name)).profiler
    assert type(profiler) is kind
    assert Path(profiler.dirpath) == tmp_path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("profiler", "fast"),
        ("limit_val_batches", 0),
        ("limit_val_batches", 0.5),
        ("fast_dev_run", -1),
        ("max_time", "12:00"),
        ("max_time", "00:25:61:00"),
        ("overfit_batches", 0),
        ("detect_anomaly", "yes"),
    ],
)
def test_bad_values_are_named(key: str, value: Any) -> None:
    with refused(key=key, value=value):
        TrainerExtra(**{key: value})


@pytest.mark.parametrize(("wanted", "steps"), [(True, 1), (3, 3)])
def test_fast_dev_run_is_steps_and_held_out_batches(wanted: bool | int, steps: int, tmp_path: Path) -> None:
    settings = TrainerSettings(
        progress_bar=False, max_steps=500, val_check_interval=10, extra=TrainerExtra(fast_dev_run=wanted)
    )
    assert settings.extent()["max_steps"] == steps
    trainer = settings.build(tmp_path, [], [])
    assert (trainer.max_steps, trainer.limit_val_batches, trainer.check_val_every_n_epoch) == (steps, steps, 1)
    assert not trainer.fast_dev_run, "Lightning's own would take the loggers away"
    assert settings.for_steps(7).extent()["max_steps"] == 7, "a reward model's training is none"


class TestStepTimer:
    def fit(self, folder: Path, timer: StepTimer, accumulation: int = 2) -> pl.Trainer:
        module = make_module(DPO())
        data = Pairs(tiny_pairs(12), tiny_pairs(3), micro=2)
        settings = TrainerSettings(progress_bar=False, max_epochs=2, accumulate_grad_batches=accumulation)
        trainer = settings.build(folder, [], [timer])
        trainer.fit(module, data)
        return trainer

    def test_training_ends_after_a_whole_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        timer = StepTimer("00:00:00:10")
        # time is over in the first of the two micro-batches of the second step
        trained: list[int] = []
        monkeypatch.setattr(timer, "time_elapsed", lambda stage=None: 0.0 if len(trained) < 3 else 99.0)
        at_end = timer.on_train_batch_end

        def counted(trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trained.append(batch_idx)
            at_end(trainer, module, outputs, batch, batch_idx)

        monkeypatch.setattr(timer, "on_train_batch_end", counted)
        trainer = self.fit(tmp_path, timer)
        assert (trainer.global_step, trained) == (2, [0, 1, 2, 3])
        names(capsys.readouterr().out, "trainer.extra.max_time=00:00:00:10", "2 optimiser steps")

    def test_time_that_suffices_changes_nothing(self, tmp_path: Path) -> None:
        assert self.fit(tmp_path, StepTimer("01:00:00:00")).global_step == 6

    def test_a_resumed_run_goes_on_counting(self) -> None:
        timer = StepTimer("00:00:00:10")
        state = timer.state_dict() | {"time_elapsed": {**timer.state_dict()["time_elapsed"], "train": 9.0}}
        timer.load_state_dict(state)
        assert timer.time_remaining() == pytest.approx(1.0)


class TestPartsOfEpochs:
    @pytest.mark.parametrize(
        ("epochs", "steps"),
        # 29 pairs in steps of 4: 8 steps an epoch; a part is rounded up to a step
        [(1, 8), (0.5, 4), (0.1, 1), (0.51, 5), (2.25, 18), (1e-3, 1), (3.0, 24)],
    )
    def test_are_planned_in_steps(self, epochs: float, steps: int) -> None:
        assert StepPlan(29, 4, max_epochs=epochs).steps == steps

    def test_of_the_decimal_that_was_written(self) -> None:
        """The float product of 0.07 and 100 is 7.000000000000001, which would be an eighth step."""
        assert StepPlan(400, 4, max_epochs=0.07).steps == 7

    def test_the_trainer_gets_steps(self, tmp_path: Path) -> None:
        trainer = built(tmp_path, steps=5, max_epochs=0.51)
        assert (trainer.max_steps, trainer.max_epochs) == (5, -1)
        whole = built(tmp_path, steps=16, max_epochs=2.0)
        assert (whole.max_steps, whole.max_epochs) == (-1, 2), "whole epochs as before, whose ends are evaluated"

    def test_cannot_be_none(self) -> None:
        with refused(key="max_epochs", value=0):
            TrainerSettings(max_epochs=0)
