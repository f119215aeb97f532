"""One process writes a folder; the second is told who does; what a killed one leaves stops nobody."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from caldpo.config import run_lock as lock
from caldpo.config.run_lock import EVALUATION, RUN, is_held, read_owner, require_free, run_lock
from caldpo.errors import CaldpoError
from caldpo.utils.process_rank import LAUNCHERS, process_rank
from tests.helpers.messages import names, refused

HOLD = """
    import os, signal, sys
    from pathlib import Path
    from caldpo.config.run_lock import run_lock
    with run_lock(Path(sys.argv[1])):
        if "fork" in sys.argv:
            come, say = os.pipe()
            child = os.fork()
            if not child:
                os.write(say, b"x")
                signal.pause()
            os.read(come, 1)  # it has begun
            print(child, flush=True)
        print("held", flush=True)
        sys.stdin.read()
"""
RANKS = LAUNCHERS


@pytest.fixture(autouse=True)
def _first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)


@contextlib.contextmanager
def another(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of ``folder``."""
    script = folder.parent / "hold.py"
    script.write_text(dedent(HOLD))
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), *arguments],
        env={k: v for k, v in os.environ.items() if k not in RANKS} | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "held\n":
            assert line, process.wait()
            process.forked = int(line)  # type: ignore[attr-defined]
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def refused_lock(folder: Path, what: str = RUN) -> CaldpoError:
    with pytest.raises(CaldpoError) as caught, run_lock(folder, what):
        pass
    return caught.value


def test_the_second_process_is_told_who_has_it(tmp_path: Path) -> None:
    with another(tmp_path, "api_key=very-secret", "loss=dpo") as process:
        before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
        assert is_held(tmp_path)
        error = refused_lock(tmp_path)
        names(error, process.pid, socket.gethostname(), read_owner(tmp_path)["since"], "loss=dpo")
        names(error, key="folder", value=tmp_path, remedy=f"kill {process.pid}")
        assert "very-secret" not in str(error) + json.dumps(read_owner(tmp_path))
        with refused(process.pid, key="hydra.run.dir", value=tmp_path, remedy=f"kill {process.pid}"):
            require_free(tmp_path, "hydra.run.dir")
        assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before, (
            "nothing of the first's is touched"
        )
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    assert list(tmp_path.iterdir()) == [], "who ends leaves nothing behind"
    require_free(tmp_path, "hydra.run.dir")
    with run_lock(tmp_path):
        assert read_owner(tmp_path) is not None


def test_a_killed_owner_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with another(tmp_path) as process:
        process.kill()
        process.wait()
    owner = read_owner(tmp_path)
    assert owner is not None
    assert owner["pid"] == process.pid, "what it left says who it was"
    assert not is_held(tmp_path)
    with run_lock(tmp_path):
        owner = read_owner(tmp_path)
        assert owner is not None
        assert owner["pid"] == os.getpid()
    assert capsys.readouterr() == ("", "")


def test_a_forked_worker_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    with another(tmp_path, "fork") as process:
        assert is_held(tmp_path)
        process.kill()
        process.wait()
        worker = process.forked  # type: ignore[attr-defined]
        try:
            os.kill(worker, 0)  # lives on
            assert not is_held(tmp_path)
            with run_lock(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_different_things_do_not_exclude_each_other(tmp_path: Path) -> None:
    with run_lock(tmp_path), run_lock(tmp_path, EVALUATION):
        assert is_held(tmp_path)
        assert is_held(tmp_path, EVALUATION)
        assert refused_lock(tmp_path, EVALUATION).message != refused_lock(tmp_path, RUN).message, "what is done there"
    assert not is_held(tmp_path)


def fail_while_it_is_held(folder: Path) -> None:
    names(refused_lock(folder), os.getpid())  # nor twice in one process
    raise ValueError("boom")


def test_it_is_let_go_of_at_the_end_whatever_that_was(tmp_path: Path) -> None:
    for _ in range(3):  # the runs of a sweep in one process
        with pytest.raises(ValueError, match="boom"), run_lock(tmp_path):
            fail_while_it_is_held(tmp_path)
        assert not is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"RANK": "0", "LOCAL_RANK": "0"}, 0),
        ({"LOCAL_RANK": "1"}, 1),
        ({"RANK": "3", "LOCAL_RANK": "0"}, 3),
        ({"SLURM_PROCID": "2"}, 2),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, 1),
        ({"NODE_RANK": "1"}, 1),
        ({"RANK": ""}, 0),
    ],
)
def test_further_processes_of_a_run_go_on_without_it(
    variables: dict[str, str], rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == rank
    with another(tmp_path):
        if rank:
            require_free(tmp_path, "hydra.run.dir")
            with run_lock(tmp_path):
                owner = read_owner(tmp_path)
            assert owner is not None
            assert owner["pid"] != os.getpid()
            assert is_held(tmp_path), "and do not let go of what is the first one's"
        else:
            refused_lock(tmp_path)


def test_a_look_at_the_lock_refuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking takes it for a moment; who comes in that moment waits."""
    monkeypatch.setattr(lock, "_PATIENCE", 5.0)
    (tmp_path / ".run.lock").touch()
    looker = os.open(tmp_path / ".run.lock", os.O_RDONLY)
    fcntl.flock(looker, fcntl.LOCK_SH)
    started = time.monotonic()
    pid = os.fork()
    if not pid:  # lets go of it after a while
        time.sleep(0.2)
        os._exit(0)
    os.close(looker)  # the child's handle keeps the lock
    with run_lock(tmp_path):
        assert 0.1 < time.monotonic() - started < 4
    os.waitpid(pid, 0)


def test_a_folder_that_is_only_read_tells_it_too(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"
    assert not is_held(tmp_path / "missing")
    with another(tmp_path):
        tmp_path.chmod(0o555)
        (tmp_path / ".run.lock").chmod(0o444)
        try:
            assert is_held(tmp_path)
        finally:
            tmp_path.chmod(0o755)


def test_where_files_have_no_locks_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with run_lock(tmp_path):
        assert is_held(tmp_path)
        owner = read_owner(tmp_path) or {}
        gone = subprocess.Popen(["true"])
        gone.wait()
        (tmp_path / ".run.owner.json").write_text(json.dumps(owner | {"pid": gone.pid}))
        assert not is_held(tmp_path)
    names(capsys.readouterr().err, "note:", tmp_path, "locks")


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").mkdir()
    error = refused_lock(tmp_path)
    names(error, "lock", os.strerror(errno.EISDIR), key="folder", value=tmp_path)
    assert error.remedy
