"""Whole runs on samples of the policy: refusals, the same again after a stop, and the known optimum."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.evaluation.runs import inside, write_data
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.runs import outcome
from tests.resume.stopped import refused, stopped

TABLE = (
    *("experiment=tabular", "console=full", "export=true", "data.cache=null"),
    *("data.source.prompts=2", "data.source.responses=4", "data.source.pairs_per_prompt=16"),
    *("data.source.test_pairs_per_prompt=8", "trainer.val_check_interval=null", "callbacks.samples.prompts=1"),
    *("callbacks.oracle.prompts=2", "loss=rebel"),
)
MODEL = ("rollouts=reward_model", "rollouts.kind=log_ratio", "rollouts.steps=5")


@pytest.mark.parametrize("kind", [("rollouts=true_reward",), MODEL], ids=["true reward", "reward model"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, kind: tuple[str, ...]) -> None:
    """Two micro-batches a step; the reward model is fitted once."""
    command = (*TABLE, *kind, "trainer.max_steps=6", "data.micro_batch_size=16", "trainer.accumulate_grad_batches=2")
    with inside(tmp_path):
        train(*command, "hydra.run.dir=whole")
        stopped(*command, "hydra.run.dir=half", after=7)
        made = tmp_path / "half" / "reward_model" / "model.safetensors"
        before = made.stat().st_mtime_ns if made.exists() else None
        train("resume=half")
        assert before == (made.stat().st_mtime_ns if made.exists() else None)
    whole, half = outcome(tmp_path / "whole"), outcome(tmp_path / "half")
    assert [name for name in whole if half[name] != whole[name]] == []
    assert whole["steps"] == 6
    summary = json.loads((tmp_path / "half" / "summary.json").read_text())
    assert summary.get("reward_model") == json.loads((tmp_path / "whole" / "summary.json").read_text()).get(
        "reward_model"
    )


def test_another_reward_model_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(tmp_path):
        stopped(*TABLE, *MODEL, "trainer.max_steps=6", "hydra.run.dir=half", after=4)
        facts = tmp_path / "half" / "reward_model" / "facts.json"
        facts.write_text(facts.read_text().replace('"scale": 1.0', '"scale": 2.0'))
        said = refused(capsys, tmp_path / "half" / "checkpoints", "resume=half", code=1)
    names(said, "the reward model", key="error: resume")


def test_the_log_ratio_reward_is_the_policy_of_a_dpo_run(tmp_path: Path) -> None:
    """The same pairs, steps, optimiser and beta: to rounding the same table, and so the same held-out accuracy."""
    with inside(tmp_path):
        train(*TABLE, "loss=dpo", "loss.beta=0.5", "trainer.max_steps=20", "hydra.run.dir=dpo")
        train(*TABLE, *MODEL, "rollouts.steps=20", "rollouts.beta=0.5", "trainer.max_steps=1", "hydra.run.dir=rlhf")
    dpo = load_file(tmp_path / "dpo" / "policy" / "model.safetensors")["lm_head.weight"]
    fitted = load_file(tmp_path / "rlhf" / "reward_model" / "model.safetensors")["policy.lm_head.weight"]
    torch.testing.assert_close(fitted, dpo, rtol=1e-4, atol=1e-4)
    expected = json.loads((tmp_path / "dpo" / "summary.json").read_text())["metrics"]["val/rewards/accuracies"]
    summary = json.loads((tmp_path / "rlhf" / "summary.json").read_text())
    assert summary["reward_model"]["accuracy"] == pytest.approx(expected)
    assert expected > 0.5


def test_standardised_rewards(tmp_path: Path) -> None:
    """An affine map of the same model's rewards: mean 0, standard deviation 1 over the training responses."""
    rows = {}
    with inside(tmp_path):
        for name, value in (("plain", "false"), ("standard", "true")):
            keys = (f"rollouts.standardize={value}", "trainer.max_steps=1", f"hydra.run.dir={name}")
            train(*TABLE, *MODEL, *keys)
            rows[name] = pd.read_csv(tmp_path / name / "metrics.csv")["rollouts/reward"].dropna().iloc[0]
    facts = json.loads((tmp_path / "standard" / "reward_model" / "facts.json").read_text())
    assert facts["scale"] != 1
    assert rows["standard"] == pytest.approx((rows["plain"] - facts["mean"]) / facts["scale"], rel=1e-4, abs=1e-5)


def test_rewards_that_are_all_the_same_have_no_standard_deviation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("rollouts.standardize=true", "rollouts.lr=1e-30", "trainer.max_steps=1", "hydra.run.dir=run")
    with inside(tmp_path):
        train(*TABLE, *MODEL, *keys, fails=1)
    names(capsys.readouterr().err, "rollouts.standardize=true", "rollouts.steps", "rollouts.lr")


@pytest.mark.slow
def test_rloo_on_the_true_reward_finds_the_optimum(tmp_path: Path) -> None:
    """``E[r] - beta KL``, exact: what separates the reference from pi* is gained but for a hundredth."""
    sizes = ("data.source.pairs_per_prompt=64", "trainer.max_steps=200", "loss.beta=0.5")
    with inside(tmp_path):
        train(*TABLE, *sizes, "rollouts=true_reward", "optim.lr=0.1", "hydra.run.dir=run")
        train(*TABLE, *sizes, "rollouts=true_reward", "optim.lr=1e-9", "trainer.max_steps=1", "hydra.run.dir=start")
    start, end = (json.loads((tmp_path / name / "summary.json").read_text())["metrics"] for name in ("start", "run"))
    gap = start["oracle/objective_optimum"] - start["oracle/objective"]
    assert gap > 0.1
    assert end["oracle/objective_optimum"] - end["oracle/objective"] < 0.01 * gap
    assert end["oracle/kl_to_optimum"] < 0.01


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (("rollouts=true_reward", "loss=sft"), ("rollouts", "reads one", "loss=rebel")),
        (("rollouts=true_reward", "reference=precomputed"), ("reference=precomputed", "reference=auto")),
        (("rollouts=true_reward", "trainer.devices=2", "trainer.strategy=ddp"), ("rollouts", "one device")),
        (("rollouts=true_reward", "data.streaming=true", "trainer.max_steps=2"), ("rollouts", "data.streaming")),
        (("rollouts=reward_model", "rollouts.kind=scalar_head", "rollouts.beta=1"), ("rollouts.beta=1", "leave it")),
        (("rollouts=true_reward", "loss=apo_zero", "data.unpair=true"), ("data.unpair", "leave out rollouts")),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_weights_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], facts: tuple[str, ...]
) -> None:
    loss = () if any(o.startswith("loss=") for o in overrides) else ("loss=rebel",)
    with inside(tmp_path):
        train(*loss, *overrides, "logger=csv", "hydra.run.dir=run", fails=1)
    names(capsys.readouterr().err, *facts)
    assert not (tmp_path / "outputs").exists(), "the embedded policy was made"


def test_a_reward_that_is_not_known_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path)
    keys = ("model=random", "model.tokenizer=tokenizer", "data=local", "data.train=train.jsonl", "data.test=test.jsonl")
    with inside(tmp_path):
        train(*keys, "loss=rebel", "rollouts=true_reward", "logger=csv", fails=1)
    names(capsys.readouterr().err, "rollouts=true_reward", "rollouts=reward_model")
