"""The line that a finished run of a sweep is told in."""

from __future__ import annotations

from typing import Any

import pytest

from caldpo.console import print_line


def summary(**more: Any) -> dict[str, Any]:
    metrics = {"val/log_ratios/chosen": -4.83, "val/log_ratios/rejected": -14.9}
    return {
        "metrics": metrics,
        "steps": 75,
        "wall_seconds": 12.3,
        "upload": None,
        "alarms": [],
        "skipped_steps": 0,
        "stopped_early": False,
    } | more


def test_alarms_and_skipped_steps_are_told_with_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = "dpo: log-ratios -4.83 chosen, -14.90 rejected after 75 steps, 12.3 s\n"
    print_line("dpo", summary())
    assert capsys.readouterr().out == line
    alarm = {"alarm": "displacement", "step": 75, "log_ratios/chosen": [0.58, -3.38, -4.83]}
    own = {"alarm": "floor", "step": 80, "text": "stopped at the floor"}
    print_line("dpo", summary(alarms=[alarm, own], skipped_steps=2))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  alarm at step 75: displacement, the chosen log-ratio fell: +0.58, -3.38, -4.83 nats",
        "  alarm at step 80: floor, stopped at the floor",
        "  2 optimiser steps were skipped: nonfinite_batches/ has the non-finite ones",
    ]


def test_an_early_stop_and_the_trackers_views_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("dpo", summary(stopped_early=True, planned_steps=1200, tracker_views=["tensorboard --logdir outputs"]))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  was stopped early, after 75 of 1,200 steps",
        "  curves: tensorboard --logdir outputs",
    ]
