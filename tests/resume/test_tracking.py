"""A resumed run's W&B run: the same one, with each row once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest

from caldpo.loggers import WandB
from caldpo.loggers.wandb_stretches import REPLACED
from tests.evaluation.runs import inside, write_data
from tests.helpers import wandb_file
from tests.helpers.command import train
from tests.resume.runs import BASE
from tests.resume.stopped import stopped

RUN = (
    *(*BASE, "loss=dpo", "trainer.max_steps=6", "callbacks.samples.prompts=0"),
    *("logger=wandb", "logger.wandb.mode=offline"),
)


def told(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Id of the offline run that ``wandb sync`` would take, and its rows."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    wandb_file.wait_until_written(file)
    return wandb_file.run_id(file), [row for row in wandb_file.history(file) if "trainer/global_step" in row]


def test_offline_a_resumed_run_is_one_run_with_each_row_once(tmp_path: Path) -> None:
    write_data(tmp_path)
    with inside(tmp_path):
        stopped(*RUN, "hydra.run.dir=run", after=9)
        before, some = told(tmp_path / "run")
        train("resume=run")
    after, rows = told(tmp_path / "run")
    assert after == before, "the same W&B run"
    table = pandas.read_csv(tmp_path / "run" / "metrics.csv")
    assert [row["row"] for row in rows] == list(range(1, len(table) + 1))
    assert [row["trainer/global_step"] for row in rows] == table["step"].tolist()
    assert [row["loss"] for row in rows if "loss" in row] == table["loss"].dropna().tolist()
    assert 0 < len(some) < len(rows)
    (replaced,) = (tmp_path / "run" / "wandb" / REPLACED).iterdir()
    assert replaced.name.startswith("offline-run-"), "what was told first is kept, where wandb sync does not look"


class FakeRun:
    """An online run, as far as it is asked: what the server knows of it, and what it is told."""

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.dir, self.summary = str(folder / "files"), summary
        self.rows: list[dict[str, Any]] = []
        self._attach_id = self.url = None

    def define_metric(self, *args: Any, **kwargs: Any) -> None: ...

    def log(self, values: dict[str, Any], **_: Any) -> None:
        self.rows.append(values)


@pytest.mark.parametrize("known", [0, 2, 4])
def test_online_it_is_told_what_had_not_reached_it(known: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows were kept; the server may have fewer (a killed process), or more (those cut off by the resume)."""
    stretch = tmp_path / "wandb" / "run-20260101_000000-abc"
    stretch.mkdir(parents=True)
    (stretch / "run-abc.wandb").write_bytes(b"")
    asked: dict[str, Any] = {}
    run = FakeRun(tmp_path, {"row": known} if known else {})

    def init(self: WandB, run_dir: Path, **arguments: Any) -> FakeRun:
        asked.update(arguments)
        return run

    monkeypatch.setattr(WandB, "_init", init)
    monkeypatch.setattr("caldpo.loggers.wandb_tracker.account_configured", lambda: True)
    ended: list[int] = []
    monkeypatch.setattr("wandb.run", SimpleNamespace(finish=lambda exit_code: ended.append(exit_code)))
    earlier = [{"step": str(step), "loss": f"{10.5 + step}", "val/loss": ""} for step in range(3)]
    tracker = WandB()
    (logger,) = tracker.open(tmp_path, "run", None, {}, earlier)
    monkeypatch.setattr(type(logger), "experiment", run)
    for step in range(3, 6):
        logger.log_metrics({"loss": 10.5 + step}, step)
    assert (asked["id"], asked["resume"], asked["offline"]) == ("abc", "allow", False)
    now = [(row["row"], row["trainer/global_step"], row["loss"]) for row in run.rows]
    assert now == [(step + 1, step, 10.5 + step) for step in range(known, 6)]
    tracker.close(failed=bool(known))
    assert ended == [int(bool(known))]
    assert tracker.upload is None
