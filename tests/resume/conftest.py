"""A run that was never stopped, and the same one stopped on its way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluation.runs import inside, write_data
from tests.helpers.command import train
from tests.resume.stopped import RUN, stopped


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a run never stopped (``whole``) and the same one stopped after 6 of 8 steps (``half``): to be read."""
    folder = tmp_path_factory.mktemp("resume")
    write_data(folder)
    with inside(folder):
        train(*RUN, "hydra.run.dir=whole")
        stopped(*RUN, "hydra.run.dir=half")
    return folder


@pytest.fixture
def half(home: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the stopped run, with its data beside it, in the current folder."""
    shutil.copytree(home, tmp_path / "copy")
    with inside(tmp_path / "copy"):
        yield tmp_path / "copy" / "half"
