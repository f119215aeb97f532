"""Sampled reward, KL and win rate against the exact ones of a table, and against arithmetic on the very samples."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

from caldpo.environments.tabular_environment import TabularEnvironment
from tests.callbacks.oracle_data import naive_logprob
from tests.evaluation.runs import evaluate, inside, reference_model, result, value
from tests.helpers.command import train
from tests.helpers.messages import holds, names
from tests.helpers.tiny import sample_responses, tiny_model

SAMPLES = 400  # to each of 8 prompts


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained table with checkpoints, evaluated."""
    home = tmp_path_factory.mktemp("table")
    with inside(home):
        train(
            "model=tabular",
            "data=tabular",
            "loss=dpo",
            "trainer.max_steps=60",
            "trainer.val_check_interval=null",
            "trainer.progress_bar=false",
            "logger=csv",
            "console=compact",
            "callbacks.samples.prompts=0",
            "callbacks.checkpoint.every=20",
            "callbacks.checkpoint.keep=all",
            "hydra.run.dir=run",
        )
        evaluate("run", "suite=oracle", f"oracle.samples={SAMPLES}", "oracle.checkpoints=all", "batch=1000")
    return home / "run"


def tables(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of policy and reference, and rewards, each ``(8, 16)``, in float64."""
    environment = TabularEnvironment(8, 16, 0, 1.0, 1.0)
    policy = AutoModelForCausalLM.from_pretrained(run / "policy").table.detach().double().softmax(dim=1)
    return (
        policy.numpy(),
        environment.reference().double().softmax(dim=1).numpy(),
        environment.rewards().double().numpy(),
    )


def error_of_mean(values: np.ndarray, probabilities: np.ndarray) -> float:
    """Standard error of the mean over ``SAMPLES`` draws of each prompt, from the exact distribution."""
    means = (probabilities * values).sum(axis=1, keepdims=True)
    variances = (probabilities * (values - means) ** 2).sum(axis=1)
    return float(np.sqrt(variances.sum() / SAMPLES) / len(values))


def test_reward_and_kl_agree_with_the_exact_ones_within_sampling_error(table: Path) -> None:
    results = result(table, "oracle")
    policy, reference, rewards = tables(table)
    for name, exact, values, drawn_from in (
        ("reward", "exact_reward", rewards, policy),
        ("kl", "exact_kl", np.log(policy / reference), policy),
        ("reference_reward", None, rewards, reference),
        ("reverse_kl", None, np.log(reference / policy), reference),
    ):
        expected = (drawn_from * values).sum(axis=1).mean()
        error = error_of_mean(values, drawn_from)
        assert abs(value(results, name) - expected) < 4 * error, name
        assert error < 0.05 * (1 + abs(expected)), "the samples are many enough to tell"
        if exact is not None:
            assert value(results, exact) == pytest.approx(expected, rel=1e-5), name


def test_win_rate_agrees_with_the_exact_one(table: Path) -> None:
    """Of independent draws: policy and reference are sampled with seeds of their own."""
    policy, reference, rewards = tables(table)
    better = np.sign(rewards[:, :, None] - rewards[:, None, :]) / 2 + 0.5
    chances = policy[:, :, None] * reference[:, None, :]
    exact = (chances * better).sum(axis=(1, 2))
    variances = (chances * better**2).sum(axis=(1, 2)) - exact**2
    error = np.sqrt(variances.sum() / SAMPLES) / len(exact)
    results = result(table, "oracle")["measures"]["win_rate"]
    assert error < 0.01
    assert abs(results["value"] - exact.mean()) < 4 * error
    # the interval draws whole prompts, of which there are 8: it is that of their means
    means = exact.std(ddof=1) / np.sqrt(8)
    assert (results["high"] - results["low"]) / 2 == pytest.approx(1.96 * means, rel=0.5)
    assert (results["high"] - results["low"]) / 2 > 3 * 1.96 * error, "not that of 3,200 independent samples"


def test_perplexity_is_of_the_policys_texts_under_the_reference(table: Path) -> None:
    """A response is one token and an EOS that is certain: two tokens, of which one has a log-prob."""
    policy, reference, _ = tables(table)
    cross = -(policy * np.log(reference)).sum(axis=1).mean()
    assert value(result(table, "oracle"), "perplexity") == pytest.approx(np.exp(cross / 2), rel=0.05)
    assert value(result(table, "oracle"), "tokens") == 2


def test_the_path_over_checkpoints_leads_from_the_reference_to_the_policy(table: Path) -> None:
    results = result(table, "oracle")
    points = results["details"]["points"]
    assert [point["step"] for point in points] == [0, 20, 40, 60]
    assert (points[0]["kl"], points[0]["reward"]) == (0, pytest.approx(value(results, "reference_reward")))
    assert (points[-1]["kl"], points[-1]["reward"]) == (value(results, "kl"), value(results, "reward"))
    for before, after in itertools.pairwise(points):
        assert before["kl"] < after["kl"]
        assert before["reward"] < after["reward"]


def test_samples_of_another_temperature_have_no_kl(table: Path, tmp_path: Path) -> None:
    with inside(table.parent):
        evaluate("run", "suite=oracle", "oracle.temperature=0", "oracle.samples=2", f"output={tmp_path}")
    results = json.loads((tmp_path / "evaluation" / "oracle.json").read_text())
    assert "kl" not in results["measures"]
    assert "kl" not in results["details"]["points"][0]
    assert any(holds(note, "KL") and holds(note, "policy's") for note in results["notes"])
    policy, _, rewards = tables(table)
    likeliest = rewards[np.arange(8), policy.argmax(axis=1)]
    assert value(results, "reward") == pytest.approx(likeliest.mean())


def test_the_figures_are_those_of_the_samples(table: Path, tmp_path: Path) -> None:
    """Sampled once more by hand, with the seed of the evaluation."""
    with inside(table.parent):
        evaluate("run", "suite=oracle", "oracle.samples=5", "batch=16", "seed=7", f"output={tmp_path}")
    results = json.loads((tmp_path / "evaluation" / "oracle.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(table / "policy")
    tokenizer = AutoTokenizer.from_pretrained(table / "policy")
    prompts = [tokenizer(f"x{i // 5}").input_ids for i in range(40)]
    longest = results["details"]["max_new_tokens"]
    drawn = sample_responses(model, tokenizer, prompts, max_new_tokens=longest, temperature=1.0, seed=7, batch_size=16)
    policy, reference, rewards = tables(table)
    chosen = [int(tokenizer.decode(ids[:1]).strip().removeprefix("y")) for ids in drawn]
    places = [i // 5 for i in range(40)]
    assert value(results, "reward") == pytest.approx(rewards[places, chosen].mean())
    assert value(results, "kl") == pytest.approx(np.log(policy / reference)[places, chosen].mean(), rel=1e-3)
    assert results["examples"] == 40


def test_data_without_a_known_reward_is_refused_before_weights_load(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights(*arguments: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("caldpo.evaluation.evaluated_policy.load_weights", no_weights)
    with inside(trained.parent):
        evaluate("run", "suite=oracle", fails=1)
    names(capsys.readouterr().err, "suite=oracle:", "reward", "local", remedy="suite=judge")


def test_a_run_that_kept_no_checkpoints_has_no_path(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = trained / "hidden"
    (trained / "checkpoints").rename(hidden)
    try:
        with inside(trained.parent):
            evaluate("run", "suite=oracle", "oracle.checkpoints=all", "oracle.classifier=x", fails=1)
    finally:
        hidden.rename(trained / "checkpoints")
    names(capsys.readouterr().err, "oracle.checkpoints=all:", "run", "checkpoints")


def test_the_start_is_even(table: Path) -> None:
    """Policy and reference are one at step 0; their samples are not."""
    with inside(table.parent):
        evaluate("run", "suite=oracle", "checkpoint=0", "oracle.samples=20")
    results = json.loads((table / "evaluation" / "step-0" / "oracle.json").read_text())
    rate = results["measures"]["win_rate"]
    assert rate["low"] < 0.5 < rate["high"]
    assert value(results, "kl") == pytest.approx(0, abs=1e-6)
    assert value(results, "reward") != value(results, "reference_reward"), "drawn apart"
    assert value(results, "reward") == pytest.approx(value(results, "exact_reward"), abs=0.3)
    assert value(results, "exact_kl") == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def classified(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict], Path]:
    """A run on data without a known reward, scored by a random classifier, its texts judged by a random GPT-2."""
    home = tmp_path_factory.mktemp("classified")
    tokenizer = AutoTokenizer.from_pretrained(trained / "policy")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        vocab_size=len(tokenizer), **sizes, max_position_embeddings=66, type_vocab_size=1, pad_token_id=0, num_labels=2
    )
    classifier = RobertaForSequenceClassification(config)
    with torch.no_grad():
        classifier.classifier.out_proj.weight.mul_(40)
    for name, model in (("classifier", classifier), ("other", tiny_model("gpt2", seed=3))):
        model.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    with inside(trained.parent):
        evaluate(
            "run",
            "suite=oracle",
            "oracle.prompts=12",
            "oracle.samples=2",
            f"oracle.classifier={home}/classifier",
            "oracle.positive_label=LABEL_1",
            f"oracle.perplexity_model={home}/other",
            f"output={home}",
        )
    rows = [json.loads(line) for line in (home / "evaluation" / "oracle_samples.jsonl").read_text().splitlines()]
    return json.loads((home / "evaluation" / "oracle.json").read_text()), rows, home


def test_a_classifier_may_be_the_reward(classified: tuple[dict, list[dict], Path]) -> None:
    results, rows, home = classified
    tokenizer = AutoTokenizer.from_pretrained(home / "classifier")
    model = RobertaForSequenceClassification.from_pretrained(home / "classifier").eval()
    assert len(rows) == results["examples"] == 24
    for row in rows:
        for who in ("policy", "reference"):
            with torch.no_grad():
                logits = model(**tokenizer(row["prompt"] + row[who], return_tensors="pt")).logits[0].double()
            assert row[f"{who}_reward"] == pytest.approx((logits[1] - logits[0]).item(), abs=1e-4)
    ours, theirs = (np.array([row[f"{who}_reward"] for row in rows]) for who in ("policy", "reference"))
    assert value(results, "reward") == pytest.approx(ours.mean())
    assert value(results, "win_rate") == pytest.approx(np.mean(np.where(ours == theirs, 0.5, ours > theirs)))
    assert len(set(ours)) > 6, "a reward that tells texts apart"


def test_perplexity_under_another_model(classified: tuple[dict, list[dict], Path]) -> None:
    results, rows, home = classified
    model = AutoModelForCausalLM.from_pretrained(home / "other").double()
    tokenizer = AutoTokenizer.from_pretrained(home / "other")
    ids = [(tokenizer(row["prompt"]).input_ids, tokenizer(row["policy"]).input_ids) for row in rows]
    logps = [naive_logprob(model, prompt, text) for prompt, text in ids if text]
    tokens = [len(text) for _, text in ids]
    assert value(results, "perplexity") == pytest.approx(np.exp(-sum(logps) / sum(tokens)), rel=1e-4)


def test_log_ratios_are_those_of_the_samples(trained: Path, classified: tuple[dict, list[dict], Path]) -> None:
    results, rows, _ = classified
    policy = AutoModelForCausalLM.from_pretrained(trained / "policy").double()
    tokenizer = AutoTokenizer.from_pretrained(trained / "policy")
    with inside(trained.parent):
        reference = reference_model().double()
    compared = 0
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        ids = tokenizer(row["policy"]).input_ids + [tokenizer.eos_token_id] * row["ended"]
        if len(ids) != row["policy_tokens"]:
            continue  # a special token in the middle is not in the text
        compared += 1
        ratio = naive_logprob(policy, prompt, ids) - naive_logprob(reference, prompt, ids)
        assert row["policy_log_ratio"] == pytest.approx(ratio, rel=1e-3, abs=1e-3)
    assert compared > 12
    assert value(results, "kl") == pytest.approx(np.mean([row["policy_log_ratio"] for row in rows]))
    assert value(results, "kl") > 0
