"""Two processes on one folder, runs that are killed, full disks, and runs that need no starting."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from caldpo.config import run_lifecycle as job
from caldpo.config.main import Main, hydra_entry
from caldpo.config.run_lifecycle import AlreadyDone, write_json
from caldpo.config.run_lock import is_held
from caldpo.config.summary_file import read_summary
from caldpo.errors import CaldpoError
from tests.config.command import main
from tests.config.jobs import JOBLIB, SECRET, everything_written, run, start, write_conf
from tests.helpers.forked import Process
from tests.helpers.messages import names


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conf(tmp_path_factory.mktemp("conf"))


@pytest.fixture(scope="module")
def busy(conf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Process]]:
    cwd = tmp_path_factory.mktemp("busy")
    process = start(conf, cwd, "hydra.run.dir='sweep/behave=wait'", "behave=wait")
    try:
        while not list(cwd.rglob("waiting")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        yield cwd, process
    finally:
        process.kill()
        process.communicate()


class TestTwoProcesses:
    """A second command on a folder that is being written is refused, and touches nothing."""

    def test_one_run(self, conf: Path, busy: tuple[Path, Process]) -> None:
        cwd, process = busy
        before = contents(cwd)
        code, _, err = run(conf, cwd, "hydra.run.dir='sweep/behave=wait'", "seed=5")
        assert code == 2
        assert err.startswith("error: hydra.run.dir=sweep/behave=wait: ")
        names(err, f"process {process.pid}", f"kill {process.pid}")
        assert contents(cwd) == before

    def test_a_run_of_a_sweep_while_the_others_go_on(self, conf: Path, busy: tuple[Path, Process]) -> None:
        cwd, process = busy
        folder = cwd / "sweep" / "behave=wait"
        record = (folder / "summary.json").read_bytes()
        code, out, err = run(conf, cwd, "hydra.sweep.dir=sweep", "behave=wait,finish", "-m")
        assert code == 1
        names(err, f"process {process.pid}", f"kill {process.pid}")
        assert (folder / "summary.json").read_bytes() == record
        assert not (folder / "error.txt").exists()
        told = {run["name"]: run["status"] for run in json.loads((cwd / "sweep" / "sweep.json").read_text())["runs"]}
        assert told == {"behave=wait": "running", "behave=finish": "finished"}
        names(out, "1 of 2")

    def test_the_runs_further_processes_are_let_in(self, conf: Path, busy: tuple[Path, Process]) -> None:
        """As Lightning starts them: the same command line in the same folder."""
        cwd, _ = busy
        given = ["hydra.run.dir='sweep/behave=wait'", "behave=finish", "hydra.output_subdir=null"]
        code, _, err = run(conf, cwd, *given, "+trainer.devices=2", LOCAL_RANK="1", WORLD_SIZE="2")
        assert (code, err) == (0, "")
        assert read_summary(cwd / "sweep" / "behave=wait") == {"status": "running"}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("launcher", ["submitit_local", "joblib"])
def test_a_run_that_is_killed_harms_no_other(launcher: str, conf: Path, tmp_path: Path) -> None:
    plugin = launcher.partition("_")[0]
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason="needs the extra that brings the launcher")
    impatient = "1" if plugin == "submitit" else ""
    given = [f"hydra/launcher={launcher}", *(JOBLIB[1:] if plugin == "joblib" else []), f"+note.token={SECRET}x"]
    code, out, err = run(
        conf, tmp_path, "behave=die,slow,crash", "hydra.sweep.dir=out", *given, "-m", IMPATIENT=impatient
    )
    assert code == 1, err
    report = json.loads((tmp_path / "out" / "sweep.json").read_text())
    told = {run["name"].removesuffix(",note.token=hidden"): run for run in report["runs"]}
    assert told["behave=die"]["status"] == "died"
    assert "killed" in told["behave=die"]["error"]
    for summary in (tmp_path / "out").rglob("summary.json"):
        assert "status" in json.loads(summary.read_text())
    slow = tmp_path / "out" / "behave=slow,note.token=hidden"
    if plugin == "submitit":  # each run is a process of its own
        assert told["behave=slow"]["status"] == "finished", "it was waited for"
        assert (slow / "result").read_text() == "whole"
        assert told["behave=crash"]["error"] == "ValueError: boom with *** second line"
        assert report["not_started"] == 0
        names(out, "1 of 3", "out")
        assert not list(tmp_path.rglob("*.pkl")), "what runs code when it is opened does not stay"
        assert (tmp_path / "out" / ".submitit").stat().st_mode & 0o077 == 0
    else:  # its pool ends as a whole: no other run goes on, and each is told for what it is
        assert told["behave=slow"]["status"] == "died"
        assert not (slow / "result").exists()
        assert report["not_started"] == 1
        names(out, "0 of 3", 1, "out")
    assert SECRET not in out + err + everything_written(tmp_path)


def test_a_disk_that_is_full_hides_no_error_and_stops_no_other_run(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the first run nothing can be written once it has begun."""
    begun: list[Path] = []

    def write_text(path: Path, text: str) -> None:
        if "crash" in str(path) and (path in begun or path.name == "error.txt"):
            raise OSError(28, "No space left on device", str(path))
        begun.append(path)
        path.write_text(text)

    monkeypatch.setattr(job, "write_text", write_text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    with pytest.raises(SystemExit) as stopped:
        main(["--config-path", str(conf), "behave=crash,finish", "hydra.sweep.dir=out", "-m"])
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    assert "ValueError: boom with ***\nsecond line" in err
    assert "No space left on device: 'out/behave=crash/error.txt'" in err.replace(f"{tmp_path}/", "")
    assert not any("error.txt" in line and "No space" not in line for line in err.splitlines()), "it is not there"
    assert SECRET not in out + err
    told = {run["name"]: run["status"] for run in json.loads(Path("out/sweep.json").read_text())["runs"]}
    assert told == {"behave=crash": "died", "behave=finish": "finished"}


class TestDone:
    """Runs that need no starting."""

    @pytest.fixture
    def command(self) -> tuple[Main, list[str]]:
        started: list[str] = []

        def done(cfg: DictConfig, folder: Path) -> AlreadyDone | None:
            assert is_held(folder), "asked by who may start it"
            return AlreadyDone(value=7.0) if read_summary(folder).get("status") == "finished" else None

        @hydra_entry("command", done=done)
        def command(cfg: DictConfig) -> float:
            started.append(f"{cfg.seed}")
            if cfg.behave == "crash":
                raise ValueError("boom")
            return float(cfg.seed)

        return command, started

    def test_what_did_not_finish_is_started_and_nothing_else(
        self,
        command: tuple[Main, list[str]],
        conf: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        main, started = command
        monkeypatch.chdir(tmp_path)
        write_json(made(tmp_path / "out" / "seed=1") / "summary.json", {"status": "finished", "kept": 1})
        write_json(made(tmp_path / "out" / "seed=2") / "summary.json", {"status": "interrupted"})
        (tmp_path / "out" / "seed=1" / "error.txt").write_text("of the finished run")
        main(["--config-path", str(conf), "seed=1,2,3", "hydra.sweep.dir=out", "-m"])
        assert started == ["2", "3"]
        out = capsys.readouterr().out
        (skipped,) = (line for line in out.splitlines() if "run 0:" in line)
        names(skipped, "seed=1", "finished")
        names(out, "3 of 3")
        assert read_summary(tmp_path / "out" / "seed=1") == {"status": "finished", "kept": 1}
        assert (tmp_path / "out" / "seed=1" / "error.txt").exists()

    def test_an_error_in_asking_is_told_and_the_finished_run_stays_finished(
        self, conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def done(cfg: DictConfig, folder: Path) -> AlreadyDone | None:
            raise damaged

        damaged = CaldpoError("is damaged", key="checkpoint")
        monkeypatch.chdir(tmp_path)
        write_json(made(tmp_path / "out") / "summary.json", {"status": "finished"})
        with pytest.raises(SystemExit) as stopped:
            hydra_entry("command", done=done)(lambda cfg: None)(["--config-path", str(conf), "hydra.run.dir=out"])
        assert stopped.value.code == 1
        assert capsys.readouterr().err == f"error: {damaged}\n"
        assert read_summary(tmp_path / "out") == {"status": "finished"}


def test_a_torn_summary_of_an_earlier_run_stops_no_run(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (made(tmp_path / "out") / "summary.json").write_text('{"status": "fin')
    main(["--config-path", str(conf), "hydra.run.dir=out"])
    assert read_summary(tmp_path / "out") == {"status": "finished"}


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
