"""Runs: a sweep computes the reference once for each pair, and losses are the same in each reference mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.callbacks.oracle_data import models_sampled
from tests.helpers.command import RANDOM_MODEL, train
from tests.reference.contexts import CountedEngine

SMALL = [
    *RANDOM_MODEL,
    "optim.lr=0.01",
    "callbacks.samples.prompts=0",
    "trainer.progress_bar=false",
    "trainer.max_steps=4",
    "export=false",
    "logger=csv",
    "reference.spot_check=0",
]


def summaries(sweep: str) -> dict[str, dict[str, Any]]:
    actual = [json.loads(path.read_text()) for path in Path(sweep).glob("*/summary.json")]
    return {summary["loss_name"]: summary for summary in actual}


def pairs(summary: dict[str, Any]) -> dict[str, int]:
    return {split: summary["data"][split]["pairs"] for split in ("train", "test")}


def test_five_losses_need_one_pass_and_later_sweeps_none(folder: Path, passes: CountedEngine) -> None:
    losses = ["cpo", "dpo", "ipo", "slic", "cal_dpo"]
    train(*SMALL, "-m", f"loss={','.join(losses)}", "hydra.sweep.dir=first")
    runs = summaries("first")
    assert {name: run["status"] for name, run in runs.items()} == dict.fromkeys(losses, "finished")
    counts = pairs(runs["dpo"])
    assert (passes.pairs("train"), passes.pairs("test")) == (counts["train"], counts["test"])
    assert passes.calls[0][0] == "test"  # cpo came first and asked for no training pair
    passes.calls.clear()
    train(*SMALL, "-m", f"loss={','.join(losses)}", "hydra.sweep.dir=second", "seed=1")
    assert passes.calls == []
    assert len(summaries("second")) == len(losses)
    assert all(run["start_difference"] < 1e-6 for run in summaries("second").values())


def test_a_reference_free_loss_computes_the_held_out_pairs_alone(folder: Path, passes: CountedEngine) -> None:
    train(*SMALL, "loss=slic", "hydra.run.dir=run")
    assert passes.pairs("train") == 0
    assert passes.pairs("test") > 0
    assert [p.name.split("-")[0] for p in Path("outputs/cache/reference").iterdir()] == ["test"]


def test_a_sweep_samples_the_reference_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the figures of runs that draw their own samples."""
    sampled = models_sampled(monkeypatch)
    tabular = ["model=tabular", *(word for word in SMALL if word not in RANDOM_MODEL)]

    def sweep(cache: str, losses: str, name: str) -> dict[str, dict[str, float]]:
        train(*tabular, f"reference.cache={cache}", "-m", f"loss={losses}", f"hydra.sweep.dir={name}")
        return {
            loss: {key: value for key, value in summary["metrics"].items() if key.startswith("oracle/")}
            for loss, summary in summaries(name).items()
        }

    shared = sweep("shared", "dpo,ipo,sft", "first")
    assert (sampled.count("reference"), sampled.count("policy")) == (1, 3)
    assert len({figures["oracle/reference_reward"] for figures in shared.values()}) == 1
    for loss in ("ipo", "sft"):
        sampled.clear()
        assert sweep(f"own_{loss}", loss, f"alone_{loss}") == {loss: shared[loss]}
        assert sampled.count("reference") == 1


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_a_run_is_the_same_with_either_reference(folder: Path, precision: str) -> None:
    """Metrics of every step; in float32 the batches' other composition shows in the last digits."""
    tables = []
    for way in ("precomputed", "frozen"):
        small = [word for word in SMALL if way == "precomputed" or "spot_check" not in word]
        train(*small, f"reference={way}", f"hydra.run.dir={way}", "loss=cal_dpo", f"trainer.precision={precision}")
        tables.append(pd.read_csv(f"{way}/metrics.csv").drop(columns="tokens_per_second"))
    assert set(tables[0]) == set(tables[1])
    tolerance = {"32-true": 1e-4, "64-true": 1e-9, "bf16-true": 0.1, "bf16-mixed": 0.1}[precision]
    for name in ("loss", "log_ratios/chosen", "val/log_ratios/rejected"):
        first, second = (table[name].dropna().tolist() for table in tables)
        assert first == pytest.approx(second, rel=tolerance, abs=tolerance), name
    actual = json.loads(Path("frozen/summary.json").read_text())
    assert actual["start_difference"] == 0  # also where Lightning changes the weights' dtype
