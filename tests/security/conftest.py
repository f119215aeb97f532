"""A tiny trained run that tests may copy and spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.runs import tiny_run, write_data


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a checkpoint beside its export; its data and cache lie in the folder above."""
    folder = tmp_path_factory.mktemp("somebody")
    write_data(folder)
    return tiny_run(folder, "callbacks.checkpoint.every=4", "callbacks.oracle.prompts=0", "reference=precomputed")
