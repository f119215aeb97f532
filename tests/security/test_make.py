"""``make secrets`` and ``make audit``: what they find, and what they say when they could not look."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
# as a person might leave one; made up, and cut in two so that this file holds none
LEFT = "aws_secret_access_key = '" + "wJalrXUtnFEMI/K7MDENG" + "/bPxRfiCYzzKq1t9Xv2'\n"
BASELINE = (
    '{"version": "1.5.0", "plugins_used": [{"name": "AWSKeyDetector"}, {"name": "KeywordDetector"}], "results": {}}'
)

pytestmark = pytest.mark.skipif(
    not (MAKEFILE.is_file() and shutil.which("make") and shutil.which("git")), reason="needs the checkout, make and git"
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project of git's with everything installed already."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("venv\n")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "constraints.txt").write_text("six==1.17.0\n")
    (tmp_path / ".secrets.baseline").write_text(BASELINE)
    (tmp_path / "code.py").write_text("seed = 0\n")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "venv" / ".dev-installed").touch()
    return tmp_path


def make(project: Path, target: str, python: str = sys.executable, **environment: str) -> tuple[int, str]:
    """Exit code and output, also where the tests themselves were started by make."""
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    done = subprocess.run(
        ["make", "-f", str(MAKEFILE), "VENV=venv", f"PY={python}", target],
        cwd=project,
        env={**outside, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_secrets(project: Path) -> None:
    pytest.importorskip("detect_secrets")
    baseline = (project / ".secrets.baseline").read_text()
    assert make(project, "secrets")[0] == 0
    (project / "new.py").write_text(LEFT)  # not added to git yet, but about to be
    code, said = make(project, "secrets")
    assert code != 0
    assert "new.py:1" in said
    assert LEFT.split("'")[1] not in said
    assert (project / ".secrets.baseline").read_text() == baseline


def audited(project: Path, script: str) -> tuple[int, str]:
    fake = project / "fake"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    return make(project, "audit", str(fake))


def test_audit_is_passed_by_a_clean_answer_alone(project: Path) -> None:
    assert audited(project, 'echo "No known vulnerabilities found" >&2') == (0, "No known vulnerabilities found\n")
    code, said = audited(project, 'echo "Found 1 known vulnerability" >&2; echo "six 1.17.0 PYSEC-1"; exit 1')
    assert code != 0
    assert "PYSEC-1" in said
    assert "NOT CHECKED" not in said
    assert audited(project, "exit 1")[0] != 0


def test_audit_without_network_says_that_nothing_was_checked(project: Path) -> None:
    pytest.importorskip("pip_audit")
    nowhere = "http://127.0.0.1:9"
    code, said = make(project, "audit", HTTPS_PROXY=nowhere, HTTP_PROXY=nowhere, https_proxy=nowhere, NO_PROXY="")
    assert code != 0
    assert "NOT CHECKED" in said
    assert "No known vulnerabilities" not in said
