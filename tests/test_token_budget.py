"""Runs whose steps are cut by a budget of tokens train to the weights and log the metrics of runs without one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from caldpo.lightning_trainer import TrainerSettings
from caldpo.logprobs import LogprobEngine
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.stopped import stopped

STEP = 8  # pairs; 21 of them make steps of 8, 8 and 5
COMMON = [
    "model=random",
    "model.tokenizer=tokenizer",
    "model.hidden_size=16",
    "data=local",
    "data.train=train.jsonl",
    "data.test=test.jsonl",
    "data.preview_pairs=0",
    "data.eval_micro_batch_size=3",
    "trainer.progress_bar=false",
    "trainer.max_epochs=2",
    "trainer.val_check_interval=2",
    "optim.lr=1e-2",
    "~callbacks.samples",
    "logger=none",
]


@pytest.fixture
def pairs(folder: Path) -> Path:
    """The tests' tokenizer, with 21 training pairs and 5 held-out ones of 3 to 35 tokens."""
    draw = random.Random(1)

    def words(most: int) -> str:
        return " ".join(f"w{draw.randrange(40)}" for _ in range(draw.randint(1, most)))

    for name, count in (("train", 21), ("test", 5)):
        rows = [
            {"prompt": f"w{i} {words(8)} {name}", "chosen": f" {words(18)}", "rejected": f" {words(18)}"}
            for i in range(count)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def trained(
    name: str, *overrides: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[pd.DataFrame, dict[str, torch.Tensor], int]:
    """Metrics by step, exported weights, and micro-batches of an optimiser step."""
    built: list[int] = []
    build = TrainerSettings.build

    def noting(
        settings: TrainerSettings, run_dir: Path, loggers: Any, callbacks: Any, accumulation: int, steps: Any
    ) -> Any:
        built.append(accumulation)
        return build(settings, run_dir, loggers, callbacks, accumulation, steps)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerSettings, "build", noting)
        train(*COMMON, *overrides, f"hydra.run.dir={name}")
    rows = pd.read_csv(f"{name}/metrics.csv").groupby("step").first()  # training and evaluation have a row each
    return rows.drop(columns="tokens_per_second"), load_file(f"{name}/policy/model.safetensors"), built[0]


@pytest.mark.parametrize("loss", ["ipo", "sft"])  # means per token of each response
def test_every_division_of_a_step_is_the_same_step(loss: str, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padded, packed = ([f"layout={layout}", f"data.micro_batch_size={STEP}"] for layout in ("padded", "packed"))
    expected, weights, whole = trained("whole", f"loss={loss}", *padded, monkeypatch=monkeypatch)
    assert whole == 1
    assert list(expected.index) == [0, 1, 2, 3, 4, 5, 6]
    assert list(expected["val/loss"].dropna().index) == [0, 2, 4, 6]  # in optimiser steps, over the partial ones
    assert abs(expected["loss"].iloc[0] - expected["loss"].iloc[5]) > 0.01
    fours = ["data.micro_batch_size=2", "trainer.accumulate_grad_batches=4"]
    divisions = {
        "counted": ["layout=padded", *fours],
        "packed": packed,
        "packed_100": [*packed, "data.max_tokens_per_micro_batch=100"],
        "packed_1": [
            "layout=packed",
            *fours,
            "data.max_tokens_per_micro_batch=1",
        ],  # every pair is larger: one at a time
        "padded_150": ["layout=padded", *fours, "data.max_tokens_per_micro_batch=150"],
        "padded_all": [*padded, "data.max_tokens_per_micro_batch=100000"],
    }
    found = {}
    for name, keys in divisions.items():
        rows, others, found[name] = trained(name, f"loss={loss}", *keys, monkeypatch=monkeypatch)
        pd.testing.assert_frame_equal(rows, expected, rtol=1e-5, atol=1e-5, check_like=True, obj=name)
        for key, value in weights.items():
            torch.testing.assert_close(others[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert (found["counted"], found["packed"], found["packed_1"], found["padded_all"]) == (4, 1, STEP, 1)
    assert 1 < found["packed_100"] < STEP
    assert 1 < found["padded_150"] < STEP


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is saturated by 100 tokens."""
    monkeypatch.setattr("caldpo.estimation.token_budget.NEGLIGIBLE", 0)
    monkeypatch.setattr("caldpo.estimation.token_budget.SATURATING", {"cpu": 100})


AUTO = ("loss=ipo", "layout=packed", f"data.micro_batch_size={STEP}")


@pytest.mark.usefixtures("small_budget")
def test_a_chosen_budget_changes_no_step(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, weights, whole = trained("whole", *AUTO, "data.max_tokens_per_micro_batch=null", monkeypatch=monkeypatch)
    assert "micro-batches:" not in capsys.readouterr().out
    computed: list[int] = []
    loss = LogprobEngine.loss

    def counting(engine: LogprobEngine, batch: Any, pair_loss: Any) -> Any:
        computed.append(batch.pairs)
        return loss(engine, batch, pair_loss)

    monkeypatch.setattr(LogprobEngine, "loss", counting)
    rows, others, count = trained("auto", *AUTO, monkeypatch=monkeypatch)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("micro-batches:")]
    names(line, "100 tokens", "CPU")
    assert (whole, count) == (1, 3)
    assert sum(computed) == 2 * 21  # every pair once an epoch: what a step leaves empty is not computed
    pd.testing.assert_frame_equal(rows, expected, rtol=1e-5, atol=1e-5, check_like=True)
    for key, value in weights.items():
        torch.testing.assert_close(others[key], value, rtol=1e-5, atol=1e-5)
    assert json.loads(Path("auto/summary.json").read_text())["max_tokens_per_micro_batch"] == 100


def test_pairs_above_the_budget_recompute_and_nothing_changes(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last bit, and no other micro-batch recomputes."""
    budget = "data.max_tokens_per_micro_batch=30"  # below some pairs
    kept = trained("kept", *AUTO, budget, "model.gradient_checkpointing=false", monkeypatch=monkeypatch)
    assert "activations recomputed" not in capsys.readouterr().out
    computed: list[tuple[int, bool]] = []
    loss = LogprobEngine.loss

    def noting(engine: LogprobEngine, batch: Any, pair_loss: Any) -> Any:
        active = any(getattr(part, "gradient_checkpointing", False) for part in engine.model.modules())
        computed.append((batch.tokens, active))
        return loss(engine, batch, pair_loss)

    monkeypatch.setattr(LogprobEngine, "loss", noting)
    rows, weights, count = trained("auto", *AUTO, budget, monkeypatch=monkeypatch)
    assert {active for _, active in computed} == {False, True}
    assert all(active is (tokens > 30) for tokens, active in computed)
    longer = sum(active for _, active in computed) // 2  # of an epoch
    names(capsys.readouterr().out, "activations recomputed:", f"{longer} of 21 pairs", "above 30 tokens")
    assert json.loads(Path("auto/summary.json").read_text())["recompute_above"] == 30
    assert json.loads(Path("kept/summary.json").read_text())["recompute_above"] is None
    assert count == kept[2]
    pd.testing.assert_frame_equal(rows, kept[0], rtol=0, atol=0)
    assert all(torch.equal(weights[key], value) for key, value in kept[1].items())


def test_where_all_fit_steps_are_divided_by_count(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit."""
    expected, weights, _ = trained("counted", *AUTO, "data.max_tokens_per_micro_batch=null", monkeypatch=monkeypatch)
    rows, others, _ = trained("auto", *AUTO, monkeypatch=monkeypatch)
    pd.testing.assert_frame_equal(rows, expected, rtol=0, atol=0)
    assert all(torch.equal(others[key], value) for key, value in weights.items())


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("longer", [False, True])
def test_a_resumed_run_keeps_the_budget_it_began_with(
    pairs: Path, longer: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another machine too, and a run that is made longer is the one that was as long from its beginning."""
    run = [*COMMON, *AUTO, "optim.schedule.decay=constant", "optim.schedule.warmup_steps=1", "trainer.max_steps=6"]
    run.append("callbacks.checkpoint.every=2")
    train(*run, "hydra.run.dir=whole")
    if longer:
        train(*run, "trainer.max_steps=4", "hydra.run.dir=cut")
    else:
        stopped(*run, "hydra.run.dir=cut", after=17)  # 3 micro-batches a step
    monkeypatch.setattr("caldpo.estimation.token_budget.SATURATING", {"cpu": 37})
    capsys.readouterr()
    train("resume=cut", "trainer.max_steps=6")
    names(capsys.readouterr().out, "micro-batches:", "100 tokens", "as the run began")
    rows, same = (pd.read_csv(f"{name}/metrics.csv").drop(columns="tokens_per_second") for name in ("whole", "cut"))
    pd.testing.assert_frame_equal(same, rows, rtol=0, atol=0)
    weights, others = (load_file(f"{name}/policy/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(others[key], value) for key, value in weights.items())
