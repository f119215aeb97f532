"""Whole runs by the command's own entry: files, counts, sweeps, failures, exports."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldpo.checkpointing.checkpoint_io import load_weights
from tests.helpers import wandb_file
from tests.helpers.command import RANDOM_MODEL, SIDES, train
from tests.helpers.logprobs import response_logprobs
from tests.helpers.messages import names

SMALL = [
    *RANDOM_MODEL,
    "optim.lr=0.01",
    "callbacks.samples.max_new_tokens=4",
    "trainer.progress_bar=false",
    "hydra.run.dir=run",
]


def test_a_run_leaves_everything_behind(folder: Path) -> None:
    train(*SMALL, "loss=dpo", "trainer.max_steps=8", "trainer.val_check_interval=4", "logger=csv")
    summary = json.loads(Path("run/summary.json").read_text())
    rows = pd.read_csv("run/metrics.csv")
    assert (summary["status"], summary["steps"], summary["loss_name"], summary["seed"]) == (
        "finished",
        8,
        "dpo",
        0,
    )
    assert rows["loss"].dropna().size == 8
    held_out = rows[rows["val/loss"].notna()].set_index("step")
    assert list(held_out.index) == [0, 4, 8]
    assert held_out.loc[0, "val/log_ratios/chosen"] == 0
    assert held_out.loc[8, "val/rewards/accuracies"] > 0.9  # which ending is preferred is easy to learn
    assert summary["metrics"]["val/loss"] == pytest.approx(held_out.loc[8, "val/loss"])
    assert summary["formula"] == "-logsigmoid(0.1 (a - b))"
    assert summary["wall_seconds"] > 0
    assert summary["peak_memory_bytes"] > 1e6
    assert {"caldpo", "torch", "transformers"} <= summary["versions"].keys()
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["loss_name"], config["loss"]["beta"], config["seed"]) == ("dpo", 0.1, 0)
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in samples} == {0, 4, 8}


def test_the_export_is_the_policy(folder: Path) -> None:
    """Loads in transformers, tokenizer and template included, and gives the log-probs that were logged."""
    train(
        *SMALL,
        "loss=sft",
        "trainer.max_steps=5",
        "logger=csv",
        "data.test=pairs.jsonl",
        "data.on_shared_prompts=keep",
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained("run/policy"),
        AutoTokenizer.from_pretrained("run/policy"),
    )
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w5"}], tokenize=False) == "w5 "
    values = []
    for line in Path("pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt, response = tokenizer(row["prompt"]).input_ids, [*tokenizer(row["chosen"]).input_ids, 2]
        ids = torch.tensor([prompt + response])
        mask = torch.arange(ids.shape[1])[None] >= len(prompt)
        values.append(response_logprobs(model, ids, torch.ones_like(mask), mask).item())
    logged = json.loads(Path("run/summary.json").read_text())["metrics"]["val/logps/chosen"]
    assert sum(values) / len(values) == pytest.approx(logged, rel=1e-4)


def test_the_seed_decides_everything(folder: Path) -> None:
    """Same seed, same numbers to the last digit; another seed, another order."""
    timing = ["tokens_per_second"]
    tables = []
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(*SMALL[:-1], f"hydra.run.dir={run}", f"seed={seed}", "trainer.max_steps=4", "logger=csv")
        tables.append(pd.read_csv(f"{run}/metrics.csv").drop(columns=timing))
    columns = list(tables[0].columns)
    pd.testing.assert_frame_equal(tables[0], tables[1][columns], check_exact=True)
    assert not tables[0].equals(tables[2][columns])


def test_every_loss_runs_through_the_same_path(folder: Path) -> None:
    """One sweep; a run that cannot work leaves its error and the others go on; the report is made from files."""
    losses = ["dpo", "ipo", "slic", "cpo", "f_dpo", "sft", "rso", "cal_dpo", "cal_ipo", "cal_slic"]
    sweep = ["-m", f"loss={','.join(losses)}", "trainer.max_steps=3", "logger=csv", "hydra.sweep.dir=sweep"]
    train(*SMALL, *sweep, "reward_beta=0.3")
    runs = {p.name: json.loads((p / "summary.json").read_text()) for p in Path("sweep").iterdir() if p.is_dir()}
    assert {r["loss_name"] for r in runs.values()} == set(losses)
    assert all(r["status"] == "finished" for r in runs.values())
    for name, summary in runs.items():
        assert summary["loss_name"] in name
        for side in SIDES:
            assert f"val/log_ratios/{side}" in summary["metrics"], name
            nats = summary["metrics"][f"val/log_ratios/{side}"]
            assert summary["metrics"][f"val/rewards/{side}"] == pytest.approx(0.3 * nats), (
                "one unit, not each loss's beta"
            )
    from caldpo.compare import main as compare

    compare(["sweep"])
    report = Path("sweep/report.md").read_text()
    names(report, "0.3 x log-ratio")
    assert "reward margin (0.3 x nats)" in report
    assert report.count("| 0.1 x log-ratio |") == 5  # what dpo, rso and the calibrated losses call their reward
    assert "## Remarks" not in report
    table = pd.read_csv("sweep/comparison.csv")
    assert set(table["loss"]) == set(losses)
    dpo = table[table["loss"] == "dpo"].iloc[0]
    expected = next(r for r in runs.values() if r["loss_name"] == "dpo")["metrics"]
    for column in ("val/log_ratios/chosen", "val/rewards/margins", "val/loss"):
        assert dpo[column] == pytest.approx(expected[column])
    assert dpo["log_ratios/chosen"] == dpo["val/log_ratios/chosen"]
    assert dpo["train/log_ratios/chosen"] == pytest.approx(expected["log_ratios/chosen"])
    assert table["log_ratios/chosen"].notna().all()  # also of losses that train without a reference
    for file in ("report.md", "reward_dynamics.png", "reward_dynamics.svg"):
        assert (Path("sweep") / file).stat().st_size > 500


def test_a_failed_run_does_not_stop_the_sweep(folder: Path) -> None:
    Path("bad.jsonl").write_text('{"prompt": "w1", "chosen": "w2"}\n')
    choices = "data.test=bad.jsonl,null"
    train(*SMALL, "-m", "trainer.max_steps=2", "logger=csv", choices, "hydra.sweep.dir=sweep", fails=1)
    runs = {p.name: p for p in Path("sweep").iterdir() if p.is_dir()}
    status = {n: json.loads((p / "summary.json").read_text())["status"] for n, p in runs.items()}
    assert sorted(status.values()) == ["failed", "finished"]
    (failed,) = (runs[name] for name, value in status.items() if value == "failed")
    assert "bad.jsonl:1" in (failed / "error.txt").read_text()
    assert "bad.jsonl" in json.loads((failed / "summary.json").read_text())["error"]
    from caldpo.compare import main as compare

    compare(["sweep"])
    assert failed.name in Path("sweep/report.md").read_text()


def test_wandb_gets_what_the_csv_gets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline without an account: the run's own file holds the same rows, and no secret."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "none")
    secret = "hunter2-" + "x" * 24
    monkeypatch.setenv("HF_TOKEN", secret)
    train(*SMALL, "loss=cal_dpo", "trainer.max_steps=3", "logger=wandb", "name=${oc.env:HF_TOKEN}", "console=compact")
    assert "wandb sync run/wandb/offline-run-" in capsys.readouterr().out
    (file,) = Path("run/wandb").glob("offline-run-*/*.wandb")
    wandb_file.wait_until_written(file)
    rows = wandb_file.history(file)
    table = pd.read_csv("run/metrics.csv")
    for name in (
        "loss",
        "terms/calibration",
        "log_ratios/chosen",
        "rewards/margins",
        "val/log_ratios/rejected",
    ):
        logged = [(row["trainer/global_step"], row[name]) for row in rows if name in row]
        kept = table[table[name].notna()]
        assert logged == [(s, pytest.approx(v)) for s, v in zip(kept["step"], kept[name], strict=True)]
    assert any(key.startswith("samples") for row in rows for key in row)
    assert wandb_file.config(file)["loss"]["beta"] == 0.1
    assert json.loads(Path("run/summary.json").read_text())["upload"].startswith("wandb sync run/wandb/offline-run-")
    for path in Path("run").rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert secret.encode() not in path.read_bytes(), path


def test_checkpoints_hold_the_policy_alone(folder: Path) -> None:
    train(
        *SMALL,
        "trainer.max_steps=4",
        "logger=csv",
        "callbacks.checkpoint.every=2",
        "callbacks.checkpoint.keep=all",
    )
    folders = sorted(Path("run/checkpoints").iterdir())
    assert [f.name for f in folders] == ["step-2", "step-4"]
    saved = load_weights(folders[-1])
    exported = AutoModelForCausalLM.from_pretrained("run/policy").state_dict()
    assert set(saved) == {f"policy.{name}" for name in exported}
    for name, value in exported.items():
        assert torch.equal(saved[f"policy.{name}"], value)


def test_scores_are_asked_for_before_a_model_loads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(*SMALL, "loss=cal_dpo", "loss.targets=scores", "logger=csv", fails=1)
    said = " ".join(capsys.readouterr().err.split())
    assert "loss.targets" in said
    assert "score" in said
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    scored = [row | {"score_chosen": 1.0 + i, "score_rejected": 0.5} for i, row in enumerate(rows)]
    Path("scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    train(
        *SMALL,
        "loss=cal_dpo",
        "loss.targets=scores",
        "logger=csv",
        "trainer.max_steps=1",
        "data.train=scored.jsonl",
    )
    assert json.loads(Path("run/summary.json").read_text())["status"] == "finished"
