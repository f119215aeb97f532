"""The alarm: when it is raised, once, with which figures, and not again in a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger

from caldpo.callbacks.displacement_alarm import DisplacementAlarm
from caldpo.losses.cal_dpo import CalDPO
from caldpo.losses.dpo import DPO
from tests.helpers.messages import names
from tests.helpers.tiny import tiny_pairs
from tests.helpers.tiny_trainer import Pairs, fit, make_module

# measured on the embedded pairs, every 25 steps
DPO_0 = [0.0, 0.58, -3.38, -4.83, -7.45, -5.10, -5.32]
DPO_1 = [0.0, 0.68, -1.81, -3.66, -2.05, -2.45, -2.52]
CAL_DPO = [0.0, 1.19, 1.24, 1.36, 1.29, 1.29, 1.30]


def trainer(first: bool = True, loggers: Any = ()) -> Any:
    return SimpleNamespace(is_global_zero=first, loggers=list(loggers))


def show(alarm: DisplacementAlarm, values: list[float], start: int = 0, at: Any = None) -> None:
    for place, chosen in enumerate(values):
        latest = {
            "val/log_ratios/chosen": chosen,
            "val/log_ratios/rejected": 2 * chosen - 1,
            "val/displacement": 0.6,
        }
        step = 25 * (place + start)
        alarm.on_validation_end(at or trainer(), SimpleNamespace(latest=latest, global_step=step))


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        (DPO_0, [75]),
        (DPO_1, [75]),
        (CAL_DPO, []),
        ([0.0, -0.5, -0.9, -0.99], []),  # falls, and is not 1 nat below
        ([0.0, -3.0, -2.0, -4.0, -3.0], []),  # is below, and does not keep falling
        ([5.0, 4.0, 3.0, 2.0], []),  # falls from above the reference to above it
        ([0.0, -1.0, -2.0, -3.0, 0.5, -1.0, -2.0], [50, 150]),  # once, until it was back
        ([0.0, -1.0, float("nan"), -3.0, -4.0], []),
        ([0.0, -1.0], []),
    ],
)
def test_when_it_is_raised(values: list[float], steps: list[int]) -> None:
    alarm = DisplacementAlarm()
    show(alarm, values)
    assert [one["step"] for one in alarm.alarms] == steps


def test_its_keys() -> None:
    patient, deep, off = (
        DisplacementAlarm(evaluations=3),
        DisplacementAlarm(below=5.0),
        DisplacementAlarm(evaluations=0),
    )
    for alarm in (patient, deep, off):
        show(alarm, DPO_0)
    assert [[one["step"] for one in alarm.alarms] for alarm in (patient, deep, off)] == [[100], [100], []]


def test_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    alarm = DisplacementAlarm()
    show(alarm, DPO_0)
    (found,) = alarm.alarms
    assert found["steps"] == [25, 50, 75]
    assert found["log_ratios/chosen"] == [0.58, -3.38, -4.83]
    said = capsys.readouterr().out
    assert said.count("alarm:") == 1
    names(said, "+0.58, -3.38, -4.83 nats", "steps 25, 50, 75", "60%", "likelihood displacement")
    names(said, "margin", "0.42", "5.83 nats")  # chosen - (2 chosen - 1)
    names(said, "samples.jsonl", "loss=cal_dpo", "loss.beta", "optim.lr")
    json.dumps(alarm.alarms)


def test_only_the_first_rank_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    alarm = DisplacementAlarm()
    show(alarm, DPO_0, at=trainer(first=False))
    assert len(alarm.alarms) == 1
    assert capsys.readouterr().out == ""


def test_the_tracker_is_told_and_may_fail() -> None:
    told: list[dict[str, Any]] = []

    class Tracker(WandbLogger):
        def __init__(self, alert: Any) -> None:
            self.alert = alert

        @property
        def experiment(self) -> Any:
            return SimpleNamespace(alert=self.alert)

    def down(**keys: Any) -> None:
        raise ConnectionError("no network")

    alarm = DisplacementAlarm()
    show(alarm, DPO_0, at=trainer(loggers=[Tracker(down), Tracker(lambda **keys: told.append(keys))]))
    (alert,) = told
    assert (alert["title"], alert["level"]) == ("likelihood displacement", "WARN")
    assert alert["text"] == alarm.alarms[0]["text"]


@pytest.mark.parametrize("stop", range(1, len(DPO_0)))
def test_a_resumed_run_repeats_nothing_and_misses_nothing(stop: int, tmp_path: Path) -> None:
    first, second, whole = DisplacementAlarm(), DisplacementAlarm(), DisplacementAlarm()
    show(first, DPO_0[:stop])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    show(second, DPO_0[stop:], start=stop)
    show(whole, DPO_0)
    assert second.alarms == whole.alarms
    assert second.state_dict() == whole.state_dict()


def test_a_step_that_is_evaluated_again_counts_once() -> None:
    alarm = DisplacementAlarm()
    for values, start in (([0.0, -2.0], 0), ([-2.0], 1), ([-2.1], 1)):
        show(alarm, values, start)
    assert alarm.alarms == []
    assert [point.step for point in alarm.points] == [0, 25]


@pytest.mark.parametrize(("loss", "raised"), [(DPO(beta=0.1), True), (CalDPO(beta=0.5), False)])
def test_it_is_raised_in_training(loss: Any, raised: bool, tmp_path: Path) -> None:
    """Held-out pairs of random tokens: trained hard, DPO lowers both responses, Cal-DPO holds the chosen ones."""
    alarm, module = DisplacementAlarm(), make_module(loss)
    data = Pairs(tiny_pairs(16), tiny_pairs(8, seed=1), 4)
    callbacks: list[pl.Callback] = [alarm]
    fit(module, data, tmp_path, max_steps=24, val_check_interval=4, callbacks=callbacks)
    assert bool(alarm.alarms) == raised
    if raised:
        assert alarm.alarms[0]["log_ratios/chosen"][-1] < -1
