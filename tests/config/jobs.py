"""Starts the command of ``tests.config.command``, and reads what its runs leave behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from textwrap import dedent

from caldpo.config.conf_dir import conf_dir
from caldpo.config.summary_file import read_summary
from tests.helpers import forked
from tests.helpers.forked import Process

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


def start(conf: Path, cwd: Path, *arguments: str, **environment: str) -> Process:
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    variables = inherited | {"PYTHONPATH": str(forked.ROOT), "SOME_API_KEY": SECRET} | environment
    words = ("--config-path", str(conf), *arguments)
    begin = forked.start_python if "hydra/launcher=joblib" in arguments else forked.start
    return begin("tests.config.command", *words, cwd=cwd, environment=variables, session=True)


def run(conf: Path, cwd: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(conf, cwd, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def everything_written(folder: Path) -> str:
    return "\n".join(p.read_text() for p in folder.rglob("*") if p.is_file())


def statuses(folder: Path) -> dict[str, str]:
    return {path.parent.name: read_summary(path.parent)["status"] for path in folder.rglob("summary.json")}
