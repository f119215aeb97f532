"""A run on ZeRO-2 handles non-finite gradients as every other run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.helpers.messages import names
from tests.nonfinite.guard_ranks import train_on_ranks
from tests.nonfinite.spoiled_runs import dumps

pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skipping")
    train_on_ranks("zero", folder)
    return folder


def weights(place: Path, name: str, rank: int) -> dict[str, Any]:
    kept: dict[str, Any] = torch.load(place / name / f"weights-{rank}.pt", weights_only=True)
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero", "offload"])
def test_a_skipped_step_changes_neither_weights_nor_optimiser_state(name: str, place: Path) -> None:
    assert [(place / name / f"message-{rank}.txt").read_text() for rank in (0, 1)] == ["1 skipped, 4 steps"] * 2
    assert len(dumps(place / name)) == 2
    expected, rows = weights(place, "ddp", 0), pd.read_csv(place / name / "metrics.csv")
    assert list(rows["grad_norm"].dropna() > 0.05) == [True] * 3, "each step with a norm is clipped"
    for rank in (0, 1):
        found = weights(place, name, rank)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=key)
    norms = [pd.read_csv(place / run / "metrics.csv")["grad_norm"] for run in ("ddp", name)]
    pd.testing.assert_series_equal(norms[1], norms[0], rtol=1e-5)


@pytest.mark.slow
def test_a_stopped_run_names_the_pair_before_its_update(place: Path) -> None:
    messages = [(place / "stop" / f"message-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    names(messages[0], "loss", "step 1", "1 of 4 pairs", "terms/calibration", "train.jsonl:")
    assert all(bool(value.isfinite().all()) for value in weights(place, "stop", 0).values())
