"""Starts the command of ``tests.config.command``, and reads what its runs leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from caldpo.config.conf_dir import conf_dir
from caldpo.config.summary_file import read_summary

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
SECRET = "very-secret-value"
CONF = """
    defaults: [hydra_base, _self_]
    name: demo
    seed: 0
    behave: finish
    api_key: null
"""


def write_conf(folder: Path) -> Path:
    """The configuration of the command; its folder."""
    (folder / "command.yaml").write_text(dedent(CONF))
    shutil.copy(conf_dir() / "hydra_base.yaml", folder)
    return folder


def start(conf: Path, cwd: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("command.py")
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, str(script), "--config-path", str(conf), *arguments],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(Path(__file__).parents[2]), "SOME_API_KEY": SECRET} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_signals,
    )


def _heed_signals() -> None:
    """In the background of a shell, or under nohup, the tests have inherited that Ctrl-C or SIGHUP is ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run(conf: Path, cwd: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(conf, cwd, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def everything_written(folder: Path) -> str:
    return "\n".join(p.read_text() for p in folder.rglob("*") if p.is_file())


def statuses(folder: Path) -> dict[str, str]:
    return {path.parent.name: read_summary(path.parent)["status"] for path in folder.rglob("summary.json")}
