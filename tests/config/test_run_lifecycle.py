"""What a run, and a sweep of runs, leaves behind when it ends well, badly, or is stopped."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from caldpo.config.run_lifecycle import as_caldpo_error, describe_error, exit_on_signals, write_json
from caldpo.config.summary_file import read_summary
from caldpo.errors import CaldpoError
from caldpo.sweep_report import UnderWay, collect, report_interrupted
from tests.config.command import MISTAKE
from tests.config.jobs import JOBLIB, SECRET, everything_written, run, start, statuses, write_conf
from tests.helpers.messages import names


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conf(tmp_path_factory.mktemp("conf"))


class TestOneRun:
    def go(self, conf: Path, cwd: Path, *arguments: str, **environment: str) -> tuple[int, str, dict[str, Any]]:
        code, _, err = run(conf, cwd, "hydra.run.dir=here", *arguments, **environment)
        return code, err, read_summary(cwd / "here")

    def test_a_good_end(self, conf: Path, tmp_path: Path) -> None:
        (tmp_path / "here").mkdir()
        # what an earlier, failed run in the same folder left
        write_json(tmp_path / "here" / "summary.json", {"status": "failed", "error": "x", "kept": 1})
        (tmp_path / "here" / "error.txt").write_text("old")
        code, err, summary = self.go(conf, tmp_path, f"api_key={SECRET}", "+note='see api_key=abc'")
        assert (code, err) == (0, "")
        assert summary == {"status": "finished", "kept": 1}
        assert not (tmp_path / "here" / "error.txt").exists()
        written = everything_written(tmp_path)
        assert SECRET not in written
        assert "api_key=abc" not in written
        config = OmegaConf.load(tmp_path / "here" / ".hydra" / "config.yaml")
        assert (config.api_key, config.seed) == ("***", 0)

    def test_a_mistake_is_told_in_its_own_words(self, conf: Path, tmp_path: Path) -> None:
        code, err, summary = self.go(conf, tmp_path, "behave=mistake")
        assert code == 1
        assert err.startswith(f"error: {MISTAKE}\n")
        assert "Traceback" not in err
        assert "HYDRA" not in err
        assert summary == {"status": "failed", "error": " ".join(str(MISTAKE).split())}
        assert "Traceback" in (tmp_path / "here" / "error.txt").read_text()

    def test_a_warning_of_a_library_is_printed_once(self, conf: Path, tmp_path: Path) -> None:
        code, out, err = run(conf, tmp_path, "behave=warn")
        assert (code, (out + err).count("the hub is slow")) == (0, 1)

    def test_a_crash_shows_where(self, conf: Path, tmp_path: Path) -> None:
        code, err, summary = self.go(conf, tmp_path, "behave=crash")
        assert code == 1
        assert "Traceback" in err
        assert "HYDRA_FULL_ERROR" not in err
        assert summary == {"status": "failed", "error": "ValueError: boom with *** second line"}
        assert SECRET not in err + everything_written(tmp_path)

    def test_further_processes_leave_the_summary_to_the_first(self, conf: Path, tmp_path: Path) -> None:
        torchrun = {"RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
        code, _, summary = self.go(conf, tmp_path, "behave=crash", "+trainer.devices=2", **torchrun)
        assert (code, summary) == (1, {})
        assert "boom" in (tmp_path / "here" / "error.rank1.txt").read_text()

    def test_lightnings_exit_on_sigterm_is_no_success(self, conf: Path, tmp_path: Path) -> None:
        code, _, summary = self.go(conf, tmp_path, "behave=sigterm")
        assert (code, summary) == (143, {"status": "interrupted"})


@pytest.fixture(scope="module", params=["basic", "joblib"])
def sweep(conf: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A sweep of six runs, four of which fail, under each launcher."""
    if request.param == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra 'sweep'")
    cwd = tmp_path_factory.mktemp("sweep")
    overrides = ["behave=crash,mistake,finish", "seed=2,10", f"+note.token={SECRET}x"]
    code, out, err = run(conf, cwd, *overrides, f"hydra/launcher={request.param}", "-m")
    (folder,) = (cwd / "outputs").iterdir()
    return {"code": code, "out": out, "err": err, "folder": folder, "cwd": cwd}


class TestSweep:
    def test_a_failure_does_not_stop_the_others(self, sweep: dict[str, Any]) -> None:
        assert statuses(sweep["folder"]) == {
            f"behave={how},seed={seed},note.token=hidden": "finished" if how == "finish" else "failed"
            for how in ("crash", "mistake", "finish")
            for seed in (2, 10)
        }
        assert sweep["code"] == 1

    def test_the_report_names_every_run(self, sweep: dict[str, Any]) -> None:
        report = json.loads((sweep["folder"] / "sweep.json").read_text())
        assert report["folder"] == f"outputs/{sweep['folder'].name}"
        runs = {run["name"].removesuffix(",note.token=hidden"): run for run in report["runs"]}
        assert list(runs) == [  # by name, numbers by size
            f"behave={how},seed={seed}" for how in ("crash", "finish", "mistake") for seed in (2, 10)
        ]
        assert runs["behave=mistake,seed=10"]["error"] == " ".join(str(MISTAKE).split())
        assert runs["behave=finish,seed=2"]["error"] is None
        names(sweep["out"], "2 of 6", f"python -m caldpo.compare outputs/{sweep['folder'].name}")

    def test_each_failed_run_keeps_its_traceback(self, sweep: dict[str, Any]) -> None:
        failed = sorted(path.parent.name.split(",")[0] for path in sweep["folder"].rglob("error.txt"))
        assert failed == ["behave=crash", "behave=crash", "behave=mistake", "behave=mistake"]

    def test_no_secret_anywhere(self, sweep: dict[str, Any]) -> None:
        assert SECRET not in sweep["out"] + sweep["err"] + everything_written(sweep["cwd"])


def test_workers_stay_for_many_runs(conf: Path, tmp_path: Path) -> None:
    """What a run imports, the worker's next one finds imported."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra 'sweep'")
    code, _, err = run(conf, tmp_path, "behave=tell", "seed=range(0,6)", *JOBLIB, "-m")
    assert (code, err) == (0, "")
    processes = [path.read_text() for path in tmp_path.rglob("process")]
    assert len(processes) == 6
    assert len(set(processes)) <= 2


@pytest.mark.parametrize(
    ("number", "code", "arguments"),
    [
        (signal.SIGTERM, 143, ["behave=wait"]),
        (signal.SIGUSR1, 128 + signal.SIGUSR1, ["behave=wait"]),
        (signal.SIGHUP, 129, ["behave=wait"]),
        (signal.SIGINT, 130, ["behave=wait"]),
        (signal.SIGTERM, 143, ["behave=finish,wait", "seed=0,1", "-m"]),
        (signal.SIGINT, 130, ["behave=finish,wait", "seed=0,1", "-m"]),
        (signal.SIGTERM, 143, ["behave=wait", "seed=0,1", *JOBLIB, "-m"]),
    ],
)
def test_a_stopped_command_says_so(
    conf: Path, tmp_path: Path, number: signal.Signals, code: int, arguments: list[str]
) -> None:
    if JOBLIB[0] in arguments:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra 'sweep'")
    waiting = 2 if JOBLIB[0] in arguments else 1
    process = start(conf, tmp_path, *arguments)
    try:
        while len(list(tmp_path.rglob("waiting"))) < waiting:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    summaries = statuses(tmp_path)
    assert set(summaries.values()) <= {"finished", "interrupted"}
    assert sum(status == "interrupted" for status in summaries.values()) == waiting
    if "-m" in arguments:
        assert "behave=wait,seed=1" not in summaries or waiting == 2  # no run starts afterwards
        (report,) = tmp_path.rglob("sweep.json")
        assert {run["name"]: run["status"] for run in json.loads(report.read_text())["runs"]} == summaries


def test_a_sweep_that_was_asked_for_and_succeeds(conf: Path, tmp_path: Path) -> None:
    code, out, err = run(conf, tmp_path, "-m", "seed=1,2", "name=mine", "hydra.sweep.dir=own")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "own").iterdir() if path.is_dir()) == [
        "seed=1,name=mine",
        "seed=2,name=mine",
    ]
    names(out, "2 of 2", "own")


def test_a_constructors_error_is_named_by_its_place() -> None:
    def raised(error: CaldpoError, text: str) -> InstantiationException:
        try:
            raise InstantiationException(text) from error
        except InstantiationException as caught:
            return caught

    bare = raised(CaldpoError("must be a number > 0", key="beta", value=0, remedy="r"), "x\nfull_key: loss")
    found = as_caldpo_error(bare)
    assert found is not None
    assert (found.key, found.value, found.message, found.remedy) == ("loss.beta", 0, "must be a number > 0", "r")
    named = as_caldpo_error(raised(CaldpoError("is missing", key="data.train"), "x\nfull_key: data"))
    assert named is not None
    assert named.key == "data.train"
    outer = InstantiationException("y\nfull_key: model")
    outer.__cause__ = bare
    nested = as_caldpo_error(outer)
    assert nested is not None
    assert nested.key == "loss.beta"
    assert as_caldpo_error(InstantiationException("z")) is None
    assert describe_error(ValueError("a\n b")) == "ValueError: a b"


def test_a_broken_summary_is_a_failed_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text('{"status": "fin')
    (run_,) = collect(tmp_path)
    assert run_.status == "failed"
    names(run_.error, "summary.json")


def test_a_launchers_handler_that_lets_sigterm_pass_gives_way_while_a_run_is_on() -> None:
    """As submitit's does, for which a job that is cancelled would go on until it is killed."""

    class Handlers:
        def bypass(self, number: int, frame: object) -> None:
            raise AssertionError("passed by")

        def requeue(self, number: int, frame: object) -> None:
            raise KeyError("requeued")

    handlers = Handlers()
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    try:
        for number, handler in zip(numbers, (handlers.bypass, signal.SIG_DFL, handlers.requeue), strict=True):
            signal.signal(number, handler)
        for number in numbers[:2]:
            with pytest.raises(SystemExit) as stopped, exit_on_signals():
                signal.raise_signal(number)
            assert stopped.value.code == 128 + number
        with pytest.raises(KeyError, match="requeued"), exit_on_signals():
            signal.raise_signal(signal.SIGUSR2)
        assert signal.getsignal(signal.SIGTERM) == handlers.bypass, "as it was"
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_nothing_to_report_without_a_sweep(tmp_path: Path) -> None:
    report_interrupted(UnderWay(tmp_path / "sweep"))
    assert not list(tmp_path.iterdir())
