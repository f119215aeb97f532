"""Every figure of held-out pairs, recomputed pair by pair from log-probs of one response at a time."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from caldpo.evaluation.bootstrap import Bootstrap
from tests.evaluation.runs import evaluate, inside, result, value
from tests.helpers.messages import names

BETA = 0.1  # of the run's loss


@pytest.fixture(scope="module")
def results(trained: Path) -> dict:
    with inside(trained.parent):
        evaluate("run", "suite=preference", "preference.resamples=400", "overwrite=true")
    return result(trained, "preference")


def test_accuracy_margin_and_log_ratios(results: dict, naive: dict) -> None:
    a, b = naive["a"], naive["b"]
    assert results["examples"] == 40
    assert results["details"]["prompts"] == 20
    assert value(results, "accuracy") == pytest.approx(np.mean(a > b))
    assert value(results, "accuracy") > 0.5
    assert value(results, "margin") == pytest.approx(BETA * np.mean(a - b), rel=1e-4)
    assert value(results, "log_ratio_chosen") == pytest.approx(a.mean(), rel=1e-4)
    assert value(results, "log_ratio_rejected") == pytest.approx(b.mean(), rel=1e-4)


def test_intervals_are_of_prompts(results: dict, naive: dict) -> None:
    """Two pairs of a prompt are one draw: just the interval of whole prompts, not that of 40 independent pairs."""
    prompts, right = naive["prompt"].tolist(), (naive["a"] > naive["b"]).astype(float)
    measure = results["measures"]["accuracy"]
    own, pairs = (Bootstrap(400, 0.95, 0).mean(right, clusters) for clusters in (prompts, range(40)))
    assert (measure["low"], measure["high"]) == pytest.approx((own["low"], own["high"]))
    assert (measure["low"], measure["high"]) != pytest.approx((pairs["low"], pairs["high"]))
    true = naive["s_w"] > naive["s_l"]
    agree = (true == (naive["a"] > naive["b"])).astype(float)
    truth = Bootstrap(400, 0.95, 0).mean(agree, prompts)
    assert results["measures"]["accuracy_of_truth"]["low"] == pytest.approx(truth["low"])
    means = [np.mean((naive["a"] - naive["b"])[naive["prompt"] == p]) for p in dict.fromkeys(prompts)]
    margin = results["measures"]["margin"]
    expected = 1.96 * BETA * np.std(means, ddof=1) / np.sqrt(20)
    assert (margin["high"] - margin["low"]) / 2 == pytest.approx(expected, rel=0.25)


def error_at(beta: float, naive: dict) -> float:
    """The calibration error of ``sigmoid(beta (a - b))``, bin by bin."""
    claimed = expit(beta * (naive["a"] - naive["b"]))
    both, true = np.concatenate([claimed, 1 - claimed]), np.repeat([1.0, 0.0], 40)
    edges = np.linspace(0, 1, 11)
    return sum(
        abs(both[here].sum() - true[here].sum()) / 80
        for low, high in itertools.pairwise(edges)
        if (here := (both >= low) & (both < high)).any()
    )


def test_calibration(results: dict, naive: dict) -> None:
    assert value(results, "calibration_error") == pytest.approx(error_at(BETA, naive), rel=1e-3)
    assert sum(point["count"] for point in results["details"]["reliability"]) == 80


def test_another_unit_of_rewards_leaves_what_the_loss_itself_claims(trained: Path, results: dict, naive: dict) -> None:
    with inside(trained.parent):
        evaluate("run", "suite=preference", "preference.resamples=10", "reward_beta=2", "output=two")
    two = result(trained.parent / "two", "preference")
    assert value(two, "calibration_error") == pytest.approx(error_at(2, naive), rel=1e-3)
    assert value(two, "margin") == pytest.approx(20 * value(results, "margin"))
    for each in (results, two):
        assert value(each, "calibration_error_own_beta") == pytest.approx(error_at(BETA, naive), rel=1e-3)
        assert value(each, "slope_own_beta") == pytest.approx(value(results, "slope"))


def test_length_bias_beside_length_alone(results: dict, naive: dict) -> None:
    longer = naive["n_w"] - naive["n_l"]
    right = naive["a"] > naive["b"]
    assert value(results, "accuracy_longer") == pytest.approx(right[longer > 0].mean())
    assert value(results, "accuracy_shorter") == pytest.approx(right[longer < 0].mean())
    assert results["measures"]["accuracy_longer"]["n"] == (longer > 0).sum()
    assert value(results, "accuracy_of_length") == pytest.approx(np.mean(np.where(longer == 0, 0.5, longer > 0)))
    ranks = [stats.rankdata(x) for x in (naive["a"] - naive["b"], longer)]
    assert value(results, "length_correlation") == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)


def test_implicit_against_true_rewards(results: dict, naive: dict) -> None:
    """Least squares with an intercept of its own for each prompt, which is what centring within prompts comes to."""
    implicit = BETA * np.concatenate([naive["a"], naive["b"]])
    true = np.concatenate([naive["s_w"], naive["s_l"]])
    prompts = np.concatenate([naive["prompt"]] * 2)
    dummies = (prompts[:, None] == np.unique(prompts)).astype(float)
    slope = np.linalg.lstsq(np.column_stack([true, dummies]), implicit, rcond=None)[0][0]
    x, y = (v - dummies @ np.linalg.lstsq(dummies, v, rcond=None)[0] for v in (true, implicit))
    assert value(results, "slope") == pytest.approx(slope, rel=1e-3)
    assert value(results, "pearson") == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-3)
    ranks = stats.rankdata(x), stats.rankdata(y)
    assert value(results, "spearman") == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-3)
    assert value(results, "error") == pytest.approx(np.abs(x - y).mean(), rel=1e-3)
    truth = np.sign(naive["s_w"] - naive["s_l"]) == np.sign(naive["a"] - naive["b"])
    assert value(results, "accuracy_of_truth") == pytest.approx(truth.mean())


def test_the_pairs_are_kept(trained: Path, results: dict, naive: dict) -> None:
    with (trained / "evaluation" / "preference_pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["log_ratio_chosen"]) for row in rows] == pytest.approx(naive["a"].tolist(), rel=1e-3, abs=1e-3)
    assert [int(row["tokens_rejected"]) for row in rows] == naive["n_l"].tolist()
    assert rows[3]["origin"] == "test.jsonl:4"
    assert float(rows[3]["score_chosen"]) == pytest.approx(naive["s_w"][3])


def test_what_the_run_logged_is_measured_again(trained: Path, results: dict) -> None:
    logged = json.loads((trained / "summary.json").read_text())["metrics"]
    assert value(results, "accuracy") == pytest.approx(logged["val/rewards/accuracies"])
    assert value(results, "log_ratio_chosen") == pytest.approx(logged["val/log_ratios/chosen"], rel=1e-5)
    assert results["notes"] == []


def test_the_start_of_training_is_its_own_reference(trained: Path) -> None:
    """Step 0: every log-ratio is 0, ties count half, and a claim of one half is borne out."""
    with inside(trained.parent):
        evaluate("run", "suite=preference", "checkpoint=0", "preference.resamples=50")
    start = json.loads((trained / "evaluation" / "step-0" / "preference.json").read_text())
    assert value(start, "accuracy") == 0.5
    assert value(start, "margin") == 0
    assert value(start, "calibration_error") == 0
    assert value(start, "slope") == 0
    assert start["measures"]["pearson"]["value"] is None, "nothing to correlate with is no number, null in JSON"


def test_one_bin_more_or_fewer_pairs(trained: Path) -> None:
    with inside(trained.parent):
        evaluate("run", "suite=preference", "preference.bins=3", "max_pairs=10", "output=elsewhere")
    written = json.loads((trained.parent / "elsewhere" / "evaluation" / "preference.json").read_text())
    assert written["examples"] == 10
    assert len(written["details"]["reliability"]) <= 3
    assert written["notes"] == [], "other pairs than the logged ones are no contradiction"


def test_a_changed_reference_is_noticed(trained: Path, tmp_path: Path) -> None:
    """By its name: two models of random weights are so nearly uniform that log-ratios hardly tell them apart."""
    config = trained / "config.yaml"
    text = config.read_text()
    section = text.index("\nmodel:")
    config.write_text(text[:section] + text[section:].replace("seed: 0", "seed: 5"))
    try:
        with inside(trained.parent):
            evaluate("run", "suite=preference", f"output={tmp_path}", "preference.resamples=10")
    finally:
        config.write_text(text)
    named, *_ = json.loads((tmp_path / "evaluation" / "preference.json").read_text())["notes"]
    then = json.loads((trained / "summary.json").read_text())["reference"]
    now = then.replace("seed 0", "seed 5")
    assert now != then
    names(named, then, now)


def test_changed_pairs_are_noticed(trained: Path, tmp_path: Path) -> None:
    file = trained.parent / "test.jsonl"
    text = file.read_text()
    file.write_text("".join(text.splitlines(keepends=True)[:30]))
    try:
        with inside(trained.parent):
            evaluate("run", "suite=preference", f"output={tmp_path}", "preference.resamples=10")
    finally:
        file.write_text(text)
    written = json.loads((tmp_path / "evaluation" / "preference.json").read_text())
    (note,) = written["notes"]
    names(note, 30, 40)
