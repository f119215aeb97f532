"""Tab after ``caldpo``, in the shells themselves."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caldpo import cli
from caldpo.config.completion import SHELLS
from caldpo.config.conf_dir import conf_dir
from tests.helpers.documents import ROOT
from tests.helpers.messages import names

LOSSES = {f"loss={path.stem}" for path in (conf_dir() / "loss").glob("cal_*.yaml")}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with the command on the path, a script for each shell, and a run's folder to complete."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "caldpo"
    code = shlex.quote("from caldpo.cli import main; main()")
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {code} "$@"\n')
    command.chmod(0o755)
    (tmp_path / "a run").mkdir()
    for shell in SHELLS:
        cli.main(["completion", shell])
        (tmp_path / f"script.{shell}").write_text(capsys.readouterr().out)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def need(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


def in_bash(line: str, breaks: str = " =:") -> set[str]:
    """What bash is given for a line with the cursor at its end, as readline calls it."""
    need("bash")
    code = (
        f"source script.bash; COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_WORDBREAKS='{breaks}'; _caldpo;"
        r" printf '%s\n' "
        '"${COMPREPLY[@]}"; complete -p caldpo'
    )
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    *found, registered = done.stdout.splitlines()
    assert registered.split()[-3:] == ["-F", "_caldpo", "caldpo"]
    return set(found) - {""}  # printf writes an empty line of nothing


def in_fish(line: str) -> set[str]:
    need("fish")
    code = f"source script.fish; complete -C {shlex.quote(line)}"
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
    return {found.partition("\t")[0] for found in done.stdout.splitlines()}


def test_bash_completes_commands_options_groups_and_keys(home: Path) -> None:
    assert in_bash("caldpo ev") == {"evaluate "}
    assert {"list ", "train ", "completion ", "--version "} <= in_bash("caldpo ")
    assert in_bash("caldpo train --ver") == {"--version "}
    assert in_bash("caldpo train -m loss=cal_", breaks=" ") == LOSSES
    assert in_bash("caldpo train loss=cal_") == {text.removeprefix("loss=") for text in LOSSES}, "readline keeps loss="
    assert in_bash("caldpo train loss=cal_dpo loss.bet") == {"loss.beta="}
    assert "a run" in in_bash("caldpo compare a"), "folders, too"
    assert in_bash("caldpo nothing lo") == set()


def test_fish_completes_the_same(home: Path) -> None:
    assert in_fish("caldpo ev") == {"evaluate"}
    assert in_fish("caldpo train --ver") == {"--version"}
    assert in_fish("caldpo train -m loss=cal_") == LOSSES
    assert in_fish("caldpo train loss=cal_dpo loss.bet") == {"loss.beta="}


def test_zsh_completes_in_a_terminal(home: Path) -> None:
    need("zsh")
    child, terminal = pty.fork()
    if child == 0:
        os.execvp("zsh", ["zsh", "-f", "-i"])
    try:
        os.write(terminal, b"autoload -Uz compinit; compinit -u -D; source script.zsh; echo rea''dy\n")
        answer(terminal, "ready\r\n")
        for typed, completed in (("caldpo eval", "evaluate "), ("caldpo train loss=cal_i", "loss=cal_ipo")):
            os.write(terminal, typed.encode() + b"\t")
            assert completed in answer(terminal, completed)
            os.write(terminal, b"\x15")  # empties the line
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def answer(terminal: int, until: str) -> str:
    """What the terminal shows, without what makes it bold, until it shows a text; at most for two minutes."""
    shown, end = "", time.monotonic() + 120
    while until not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace").replace("\x1b[1m", "").replace("\x1b[0m", "")
    return shown


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["completion", "bsh"])
    assert stopped.value.code == 2
    names(capsys.readouterr().err, "bsh", "did you mean bash?", remedy="caldpo completion fish")
