"""The container of .devcontainer/: its files agree with what the project asks of a machine. The image is not built."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".devcontainer"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="an installed wheel has no container")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, without comments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, rest in lines]


def settings() -> dict[str, Any]:
    return json.loads((FOLDER / "devcontainer.json").read_text())


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_it_is_built_from_the_dockerfile_beside_it() -> None:
    assert (FOLDER / settings()["build"]["dockerfile"]).is_file()


def test_the_dockerfile_has_instructions_alone() -> None:
    known = {"FROM", "RUN", "USER", "ENV", "WORKDIR", "COPY", "ARG"}
    assert {word for word, _ in instructions()} <= known
    assert [word for word, _ in instructions()].count("FROM") == 1


def test_python_is_the_oldest_that_the_project_takes() -> None:
    """The one that the types and the pins are checked with."""
    image = next(rest for word, rest in instructions() if word == "FROM")
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", image)
    assert version
    assert project()["project"]["requires-python"] == f">={version[1]}"
    assert project()["tool"]["mypy"]["python_version"] == version[1]


def test_it_has_what_the_two_commands_need() -> None:
    """README.md asks for make and Python; git, a compiler and a browser are for tests."""
    installed = next(rest for word, rest in instructions() if "apt-get install" in rest)
    packages = set(re.search(r"--no-install-recommends ([\w+ -]+?) &&", installed)[1].split())  # type: ignore[index]
    assert {"make", "git", "g++", "chromium"} == packages
    assert "make demo" in (ROOT / "README.md").read_text()


def test_the_user_is_made_and_is_not_root() -> None:
    user = settings()["remoteUser"]
    assert user != "root"
    assert ("USER", user) in instructions()
    assert any(word == "RUN" and rest.startswith("useradd") and rest.endswith(user) for word, rest in instructions())


def test_what_it_makes_at_its_start_is_what_make_test_needs() -> None:
    """So that `make test` and `make demo` install nothing again."""
    command = settings()["postCreateCommand"].split()
    assert command[0] == "make"
    (target,) = command[1:]
    asked = subprocess.run(
        ["make", "-n", "-B", f"VENV={Path(target).parent}", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install" in asked.stdout
    assert "-c constraints.txt -e '.[dev]'" in asked.stdout
    database = subprocess.run(["make", "-n", "-B", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"touch {target}" in database
