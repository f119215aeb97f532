"""What is read from run folders, whole and damaged ones."""

from __future__ import annotations

import math

import pytest

from caldpo.report.read_curves import read_curves
from caldpo.report.read_runs import read_run, read_runs
from tests.helpers.messages import names
from tests.report.results import content, measure
from tests.report.runs import finals, held_out, write_run

ROWS = [held_out(0, 0.0, 0.0), {"step": 0, "loss": 0.7}, {"step": 1, "loss": 0.6}, held_out(2, -1.0, -3.0)]


def test_a_finished_run(tmp_path):
    folder = write_run(
        tmp_path / "x",
        "cal_dpo",
        3,
        rows=ROWS,
        metrics=finals(ROWS[-1], oracle__reward=0.5, oracle__slope=None),
        loss_keys={"beta": 0.05},
        overrides=["trainer.max_steps=20"],
        job=4,
    )
    run = read_run(folder, tmp_path)
    assert (run.name, run.loss, run.seed, run.status, run.error, run.job) == (
        "x", "cal_dpo", 3, "finished", None, 4,
    )  # fmt: skip
    assert run.curves["val/log_ratios/chosen"] == {0: 0.0, 2: -1.0}
    assert run.curves["loss"] == {0: 0.7, 1: 0.6}
    assert run.last_step == 2
    assert run.final["val/log_ratios/rejected"] == -3.0
    assert run.final["oracle/reward"] == 0.5
    assert run.final["loss"] == 0.6, "not in the summary: the last that was logged"
    assert math.isnan(run.final["oracle/slope"]), "JSON's null is a figure that is not a number"
    assert run.number("loss.beta") == 0.05
    assert run.number("loss.delta") is None
    assert run.choices["model"] == "tiny"
    assert run.overrides == ("loss=cal_dpo", "seed=3", "trainer.max_steps=20")
    assert run.notes == ()


def test_results_of_evaluation_stand_beside_those_of_training(tmp_path):
    results = {"oracle": content({"reward": measure(1.5), "kl": measure(None)}), "judge": {"measures": {"x": {}}}}
    folder = write_run(tmp_path / "x", rows=ROWS, metrics=finals(ROWS[-1], oracle__reward=0.5), evaluation=results)
    (folder / "evaluation" / "torn.json").write_text('{"measures": {')
    run = read_run(folder, tmp_path)
    assert run.final["oracle/reward"] == 0.5
    assert run.final["evaluation/oracle/reward"] == 1.5
    assert math.isnan(run.final["evaluation/oracle/kl"])
    assert run.evaluation == results
    (note,) = run.notes
    names(note, "evaluation/torn.json")


def test_the_summary_wins_over_the_last_row(tmp_path):
    folder = write_run(tmp_path / "x", rows=ROWS, metrics={"val/log_ratios/chosen": -9.0})
    assert read_run(folder, tmp_path).final["val/log_ratios/chosen"] == -9.0


def test_a_half_written_last_line_is_left_out_and_noted(tmp_path):
    folder = write_run(tmp_path / "x", rows=ROWS, status=None)
    metrics = folder / "metrics.csv"
    whole = metrics.read_text()
    metrics.write_text(whole + "0.5,0.2,-0")
    run = read_run(folder, tmp_path)
    assert run.curves == read_run(write_run(tmp_path / "y", rows=ROWS), tmp_path).curves
    (note,) = run.notes
    names(note, "metrics.csv:6")


def test_cells_that_were_not_logged_and_cells_that_are_no_number_differ(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("loss,step,val/loss\nnan,0,\n,0,0.5\n0.25,1,\n0.125,1,\n")
    notes = []
    curves = read_curves(path, notes)
    assert math.isnan(curves["loss"][0])
    assert curves["loss"][1] == 0.125, "a step logged twice, as after a resumption, keeps its last value"
    assert curves["val/loss"] == {0: 0.5}
    assert notes == []


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_a_table_without_steps_is_noted(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    notes = []
    assert read_curves(tmp_path / "metrics.csv", notes) == {}
    (note,) = notes
    names(note, "metrics.csv", "step")


def test_runs_that_did_not_finish(tmp_path):
    write_run(tmp_path / "failed", "ipo", rows=None, status="failed", error="CaldpoError: loss.beta=0: no")
    write_run(tmp_path / "stopped", rows=ROWS, status="interrupted")
    write_run(tmp_path / "busy", rows=ROWS, status="running")
    write_run(tmp_path / "killed", rows=ROWS, status=None)
    (write_run(tmp_path / "torn", rows=ROWS) / "summary.json").write_text('{"status": "fini')
    (tmp_path / "early" / ".hydra").mkdir(parents=True)
    (tmp_path / "early" / ".hydra" / "overrides.yaml").write_text("[loss=cpo, seed=1]")
    folders = sorted(path for path in tmp_path.iterdir())
    runs = {run.name: run for run in read_runs(folders, tmp_path)}
    assert {name: run.status for name, run in runs.items()} == {
        "failed": "failed",
        "stopped": "interrupted",
        "busy": "died",
        "killed": "incomplete",
        "torn": "incomplete",
        "early": "incomplete",
    }
    assert runs["failed"].error == "CaldpoError: loss.beta=0: no"
    assert runs["failed"].loss == "ipo"
    names(runs["busy"].error, "process")
    names(runs["killed"].error, "no summary")
    names(runs["stopped"].error, "stopped")
    names(runs["torn"].error, "summary.json")
    assert runs["early"].loss == "cpo"
    assert not any(run.finished for run in runs.values())


def test_sweep_order_is_the_order_of_jobs_not_of_names(tmp_path):
    names = {"loss=ipo": 0, "loss=dpo": 1, "loss=cal_dpo": 2, "loss=cpo": 10}
    for name, job in names.items():
        write_run(tmp_path / name, name.partition("=")[2], rows=ROWS, job=job)
    assert [run.loss for run in read_runs(sorted(tmp_path.iterdir()), tmp_path)] == [
        "ipo", "dpo", "cal_dpo", "cpo",
    ]  # fmt: skip


def test_secrets_typed_on_the_command_line_are_not_read(tmp_path):
    folder = write_run(tmp_path / "x", rows=ROWS, overrides=["model.hf_token=abcdefghij"])
    assert "abcdefghij" not in str(read_run(folder, tmp_path).overrides)


def test_a_configuration_that_cannot_be_read_is_noted(tmp_path):
    folder = write_run(tmp_path / "x", "ipo", rows=ROWS)
    (folder / ".hydra" / "config.yaml").write_text("a: [1")
    run = read_run(folder, tmp_path)
    (note,) = run.notes
    names(note, "config.yaml")
    assert run.config == run.resolved, "the resolved one takes its place"
    assert run.loss == "ipo"
