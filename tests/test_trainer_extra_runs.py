"""Whole runs with Lightning's own keys, the debug presets, parts of epochs, and several trackers at once."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.evaluation.runs import inside, write_data
from tests.helpers.command import RANDOM_MODEL, train
from tests.loggers.test_local_trackers import store, tensorboard_scalars
from tests.resume.runs import BASE
from tests.resume.stopped import stopped

SMALL = (*RANDOM_MODEL, "optim.lr=0.01", "loss=cal_dpo", "trainer.progress_bar=false", "callbacks.oracle.prompts=0")
FEW_SAMPLES = "callbacks.samples.max_new_tokens=4"
NO_SAMPLES = "callbacks.samples.prompts=0"


def rows_of(run: str) -> pd.DataFrame:
    rows = pd.read_csv(f"{run}/metrics.csv")
    return rows.drop(columns=[name for name in rows if name.startswith("tokens_per_second")])


def summary_of(run: str) -> dict[str, object]:
    return json.loads(Path(run, "summary.json").read_text())


def test_fast_dev_run_is_one_step_from_end_to_end(folder: Path) -> None:
    train(*SMALL, "debug=fast_dev_run", FEW_SAMPLES, "trainer.max_steps=500", "hydra.run.dir=run")
    summary, rows = summary_of("run"), rows_of("run")
    assert (summary["status"], summary["steps"], summary["planned_steps"]) == ("finished", 1, 1)
    assert rows["loss"].dropna().size == 1
    assert rows[rows["val/loss"].notna()]["step"].tolist() == [0, 1]
    assert not Path("run/policy").exists()
    assert not Path("run/checkpoints").exists()


def test_overfitting_sees_the_same_pairs_at_each_step(folder: Path) -> None:
    """At a learning rate of almost 0, equal pairs have equal losses: in the same order, to the last digits."""
    train(*SMALL, "debug=overfit", NO_SAMPLES, "optim.lr=1e-30", "trainer.max_steps=4", "hydra.run.dir=same")
    train(*SMALL, NO_SAMPLES, "logger=csv", "optim.lr=1e-30", "trainer.max_steps=4", "hydra.run.dir=all")
    same, others = (rows_of(run)["logps/chosen"].dropna() for run in ("same", "all"))
    assert len(same) == 4
    assert same.nunique() == 1
    assert others.nunique() > 1


def test_the_profiler_writes_where_the_time_went(folder: Path) -> None:
    train(*SMALL, "debug=profiler", NO_SAMPLES, "trainer.max_steps=2", "hydra.run.dir=run")
    (file,) = Path("run").glob("fit-*profile*.txt")
    assert "run_training_batch" in file.read_text()


def test_a_part_of_an_epoch_is_as_many_steps(folder: Path) -> None:
    keys = (*SMALL, NO_SAMPLES, "logger=csv", "trainer.val_check_interval=null")
    train(*keys, "trainer.max_steps=null", "trainer.max_epochs=0.6", "hydra.run.dir=part")
    steps = summary_of("part")["steps"]
    train(*keys, f"trainer.max_steps={steps}", "hydra.run.dir=steps")
    train(*keys, "trainer.max_steps=null", "trainer.max_epochs=1", "hydra.run.dir=whole")
    whole = summary_of("whole")["steps"]
    assert steps == -(-6 * int(str(whole)) // 10)
    assert int(str(steps)) < int(str(whole))
    pd.testing.assert_frame_equal(rows_of("part"), rows_of("steps"), check_exact=True)


def test_several_trackers_get_what_the_csv_gets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(*SMALL, FEW_SAMPLES, "logger=[tensorboard,mlflow]", "trainer.max_steps=3", "tags=[a]", "hydra.run.dir=run")
    rows = pd.read_csv("run/metrics.csv")
    scalars = tensorboard_scalars(Path("run"))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store())
    (found,) = client.search_runs([client.get_experiment_by_name("caldpo").experiment_id])
    assert (found.data.tags["tags"], found.info.status) == ("a", "FINISHED")
    assert "loss=cal_dpo" in found.info.run_name
    for name in rows.columns.drop("step"):
        values = rows[["step", name]].dropna()
        expected = list(zip(values["step"], values[name], strict=True))
        assert scalars[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected], name
        history = client.get_metric_history(found.info.run_id, name)
        assert sorted((point.step, point.value) for point in history) == sorted(expected), name
    summary = summary_of("run")
    assert found.data.metrics["run/steps"] == summary["steps"] == 3
    assert summary["tracker_views"] == ["tensorboard --logdir run", "mlflow ui --backend-store-uri sqlite:///mlflow.db"]
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["samples.json"]


def test_a_resumed_runs_events_are_each_there_once(tmp_path: Path) -> None:
    write_data(tmp_path)
    run = (*BASE, "loss=dpo", "trainer.max_steps=6", NO_SAMPLES, "logger=tensorboard", "hydra.run.dir=run")
    with inside(tmp_path):
        stopped(*run, after=9)
        train("resume=run")
        rows = pd.read_csv("run/metrics.csv").dropna(subset=["loss"])
        told = tensorboard_scalars(Path("run"))["loss"]
    assert [step for step, _ in told] == rows["step"].tolist() == list(range(6))
    assert [value for _, value in told] == pytest.approx(rows["loss"].tolist(), rel=1e-6)
