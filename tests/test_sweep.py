"""What the end of a sweep says of its runs and proposes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from caldpo.config.hydra_session import hydra_session
from caldpo.config.run_lifecycle import write_json
from caldpo.config.run_lock import run_lock
from caldpo.config.summary_file import SUMMARY
from caldpo.report.comparison import compare_runs
from caldpo.sweep_report import UnderWay, planned_runs, report, report_interrupted
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.report.pages import data_of
from tests.report.runs import finals, held_out, write_run

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def finished(folder: Path, dry: bool) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(f"seed: 0\ndry_run: {str(dry).lower()}\n")
    write_json(folder / SUMMARY, {"status": "finished"})


@pytest.mark.parametrize(("dry", "proposed"), [((True, True), False), ((True, False), True), ((False, False), True)])
def test_only_trained_runs_are_to_be_compared(
    dry: tuple[bool, bool], proposed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, this in enumerate(dry):
        finished(tmp_path / f"seed={number}", this)
    report(UnderWay(tmp_path))
    text = capsys.readouterr().out
    names(text, "2 of 2", tmp_path)
    assert (f"python -m caldpo.compare {tmp_path}" in text) == proposed


def test_a_sweep_ends_in_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for loss, chosen in (("dpo", -2.0), ("cal_dpo", 1.0)):
        rows = [held_out(0, 0.0, 0.0), held_out(20, chosen, -3.0)]
        write_run(tmp_path / f"loss={loss}", loss, rows=rows, metrics=finals(rows[-1]))
    report(UnderWay(tmp_path))
    names(capsys.readouterr().out, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert [group["label"] for group in data_of(page)["groups"]] == ["cal_dpo", "dpo"]


def test_a_page_that_cannot_be_written_fails_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -3.0)]
    write_run(tmp_path / "loss=dpo", rows=rows, metrics=finals(rows[-1]))
    (tmp_path / "report.html").mkdir()
    assert [run.status for run in report(UnderWay(tmp_path))] == ["finished"]
    names(capsys.readouterr().out, "note", "page")


def summaries(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / SUMMARY).write_text(text)


def statuses(folder: Path) -> dict[str, str]:
    return {run["name"]: run["status"] for run in json.loads((folder / "sweep.json").read_text())["runs"]}


def test_what_says_that_it_is_running_is_believed_only_where_somebody_runs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = '{"status": "running", "kept": 1}'
    summaries(tmp_path, busy=running, killed=running, torn='{"status": "fin', odd="[1]", done='{"status": "finished"}')
    with run_lock(tmp_path / "busy"):
        outcomes = {run.name: run for run in report(UnderWay(tmp_path, planned=7))}
    assert {name: run.status for name, run in outcomes.items()} == {
        "busy": "running",
        "done": "finished",
        "killed": "died",
        "odd": "failed",
        "torn": "failed",
    }
    assert outcomes["torn"].error is not None
    names(outcomes["torn"].error, "summary.json")
    assert (tmp_path / "killed" / SUMMARY).read_text() == running, "and left as it is"
    names(capsys.readouterr().out, "1 of 7", 2)
    assert json.loads((tmp_path / "sweep.json").read_text())["not_started"] == 2


@pytest.mark.parametrize(("code", "told"), [(130, "interrupted"), (1, "died")])
def test_runs_that_were_stopped_with_the_sweep_and_runs_that_were_lost_differ(
    code: int, told: str, tmp_path: Path
) -> None:
    summaries(tmp_path, one='{"status": "running", "kept": 1}', torn='{"sta')
    report_interrupted(UnderWay(tmp_path, planned=2), code)
    assert statuses(tmp_path) == {"one": told, "torn": "failed"}
    assert json.loads((tmp_path / "one" / SUMMARY).read_text())["kept"] == 1


def test_runs_that_go_on_after_another_was_lost_are_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summaries(tmp_path, other='{"status": "running"}')
    begun = threading.Event()

    def go_on() -> None:
        with run_lock(tmp_path / "other"):
            begun.set()
            time.sleep(0.5)
            write_json(tmp_path / "other" / SUMMARY, {"status": "finished"})

    thread = threading.Thread(target=go_on)
    thread.start()
    begun.wait()
    report_interrupted(UnderWay(tmp_path), 1)
    thread.join()
    assert statuses(tmp_path) == {"other": "finished"}
    names(capsys.readouterr().out, "waiting")


def test_pickles_of_jobs_that_may_still_start_stay(tmp_path: Path) -> None:
    for job, files in {"7_0": ["7_0_submitted", "7_0_0_result"], "7_1": ["7_1_submitted"]}.items():
        (tmp_path / ".submitit" / job).mkdir(parents=True)
        for name in files:
            (tmp_path / ".submitit" / job / f"{name}.pkl").touch()
    report_interrupted(UnderWay(tmp_path, jobs_elsewhere=True), 1)
    assert [path.name for path in tmp_path.rglob("*.pkl")] == ["7_1_submitted.pkl"]


@pytest.mark.parametrize(
    ("sweeper", "params", "overrides", "planned"),
    [
        (BASIC, None, ["loss=dpo,ipo", "seed=range(0,3)", "name=x"], 6),
        (BASIC, {"loss": "dpo,ipo,cpo", "seed": "0,1"}, ["seed=5"], 3),  # the command line wins
        (BASIC, None, [], 1),
        ("somewhere.DrawingSweeper", None, ["seed=0,1"], None),
        (BASIC, None, ["loss=glob(cal_*)"], 3),
    ],
)
def test_how_many_runs_a_sweep_has(sweeper: str, params: Any, overrides: list[str], planned: int | None) -> None:
    hydra = {"sweeper": {"_target_": sweeper, "params": params}, "overrides": {"task": overrides}}
    with hydra_session("train"):
        assert planned_runs(OmegaConf.create({"hydra": hydra})) == planned


@pytest.mark.slow
def test_trained_jobs_of_which_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the command to the report: its neighbour is whole, and everything says which is which."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra 'slurm'")
    from submitit.core.core import Job

    monkeypatch.setattr(Job, "_results_timeout_s", 1)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)

    def kill() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            for metrics in Path("out").glob("*seed=1*/metrics.csv"):
                if metrics.read_text().count("\n") > 3:
                    os.kill(json.loads((metrics.parent / ".run.owner.json").read_text())["pid"], signal.SIGKILL)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    given = ["model=tabular", "trainer.max_steps=80", "logger=none", "console=compact", "export=false"]
    train("-m", "hydra/launcher=jobs", "hydra.sweep.dir=out", "seed=0,1", *given, fails=1)
    killer.join()
    told = {name.partition("seed=")[2][0]: status for name, status in statuses(Path("out")).items()}
    assert told == {"0": "finished", "1": "died"}
    names(capfd.readouterr().out, "1 of 2")
    compare_runs("out", dpi=40)
    head = Path("out/report.md").read_text().split("## What was compared")[0]
    names(head, "1 of 2")
    (line,) = (line for line in head.splitlines() if line.startswith("- `") and "seed=1" in line)
    names(line, "died", "of 80")
    (table,) = Path("out").glob("*seed=0*/metrics.csv")
    assert table.read_text().splitlines()[-1].count(",") == table.read_text().splitlines()[0].count(",")
