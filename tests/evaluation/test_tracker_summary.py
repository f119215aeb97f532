"""Results go to the W&B run that the training left, where it left one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from caldpo.evaluation.evaluation_run import update_tracker
from caldpo.evaluation.evaluation_target import Target
from tests.evaluation.runs import evaluate, inside, result, tiny_run, value, write_data
from tests.helpers import wandb_file
from tests.helpers.messages import names

WANDB = "caldpo.loggers.wandb_tracker.WandB"


def test_an_evaluation_is_in_the_summary_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "none")
    write_data(tmp_path)
    run = tiny_run(tmp_path, "logger=wandb", "logger.wandb.project=mine", "callbacks.checkpoint.every=4")
    (first,) = run.glob("wandb/offline-run-*/*.wandb")
    wandb_file.wait_until_written(first)
    capsys.readouterr()

    def printed(suite: str) -> str:
        with inside(tmp_path):
            evaluate("run", f"suite={suite}", f"{suite}.resamples=20")
        return capsys.readouterr().out

    for suite in ("preference", "displacement"):
        names(printed(suite), "wandb sync run/wandb")
        assert "wandb sync" not in printed(suite)  # nothing new was measured
    later = {*run.glob("wandb/offline-run-*/*.wandb")} - {first}
    assert len(later) == 2
    for file in later:
        wandb_file.wait_until_written(file)
        assert wandb_file.run_id(file) == wandb_file.run_id(first)
        assert {r.run.project for r in wandb_file.records(file) if r.WhichOneof("record_type") == "run"} == {"mine"}
        summary = wandb_file.summary(file)
        assert summary["evaluation/preference/accuracy"] == value(result(run, "preference"), "accuracy")
        trained = {name: value for name, value in wandb_file.summary(first).items() if name.startswith("val/")}
        assert trained == {name: pytest.approx(summary[name]) for name in trained} != {}
    # the last one holds all
    last = wandb_file.summary(max(later, key=wandb_file.started))
    fell = value(result(run, "displacement"), "chosen_fell")
    assert last["evaluation/displacement/chosen_fell"] == fell


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (None, None),
        ({}, None),
        ({"_target_": "caldpo.loggers.tracker_base.NoTracker"}, None),
        ({"none": {"_target_": "caldpo.loggers.tracker_base.NoTracker"}}, None),
        ({"own": {"_target_": "caldpo.loggers.tracker_base.os.system", "command": "touch x"}}, None),
        ({"wandb": {"_target_": WANDB, "mode": "sometimes"}}, "tracker"),
        ({"wandb": {"_target_": WANDB, "project": {"_target_": "os.system", "command": "touch made"}}}, "tracker"),
    ],
)
def test_only_the_projects_trackers_are_told(
    section: dict[str, Any] | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    measures = {"a": {"value": 0.5}, "undefined": {"value": None}}
    (folder / "preference.json").write_text(json.dumps({"measures": measures}))
    target = Target("run", tmp_path, tmp_path, {"logger": section})
    message = update_tracker(target)
    assert message is None if expected is None else expected in str(message)
    assert list(tmp_path.iterdir()) == [folder]
