"""The figures against the known reward, each computed another way: one response at a time, or by scipy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from caldpo.callbacks.true_reward import OracleEvaluation
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.lightning_module import PreferenceModule
from caldpo.models.sampling import reference_seed
from caldpo.reference.frozen_model import FrozenReference
from tests.callbacks.oracle_data import (
    BETA,
    OracleData,
    fit,
    make_module,
    models_sampled,
    naive_logprob,
    reward,
    scored_pairs,
    words,
)
from tests.helpers.tiny import sample_responses, tiny_model

SAMPLING: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.8, "seed": 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreferenceModule, dict[str, float], int]:
    """A policy after two steps, its oracle metrics, and the step at which they are written."""
    folder: Path = tmp_path_factory.mktemp("run")
    module = make_module()
    fit(module, OracleData(reward), folder, OracleEvaluation(prompts=20, **SAMPLING), max_steps=2)
    rows = pd.read_csv(folder / "metrics.csv")
    written = rows[rows["oracle/reward"].notna()]
    assert len(written) == 1
    found = {k.removeprefix("oracle/"): v for k, v in module.latest.items() if k.startswith("oracle/")}
    for name, value in found.items():
        assert written[f"oracle/{name}"].item() == pytest.approx(value)
    return module, found, int(written["step"].item())


def responses(model: Any, module: PreferenceModule) -> list[list[int]]:
    """Samples of the policy, or of the reference with a seed of its own."""
    prompts = [p.prompt_ids for p in scored_pairs()[::2][:20]]
    seed = SAMPLING["seed"] if model is module.policy else reference_seed(SAMPLING["seed"])
    return sample_responses(model, module.tokenizer, prompts, **SAMPLING | {"seed": seed})


def true_rewards(sampled: list[list[int]]) -> list[float]:
    prompts = [words(p.prompt_ids) for p in scored_pairs()[::2][:20]]
    return [reward(p, words(r)) for p, r in zip(prompts, sampled, strict=True)]


def test_there_is_one_row_at_the_last_step_with_every_figure(trained: Any) -> None:
    _, found, step = trained
    assert step == 2
    assert set(found) == {"reward", "reference_reward", "win_rate", "kl", "slope", "pearson", "spearman", "error"}


def test_rewards_and_win_rate_with_ties_half(trained: Any) -> None:
    module, found, _ = trained
    ours = true_rewards(responses(module.policy, module))
    theirs = true_rewards(responses(module.reference.model, module))
    assert ours != theirs
    assert found["reward"] == pytest.approx(np.mean(ours), abs=1e-6)
    assert found["reference_reward"] == pytest.approx(np.mean(theirs), abs=1e-6)
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    assert 0.5 in points, "no tie to be counted half"
    assert found["win_rate"] == pytest.approx(np.mean(points))


def test_kl_is_the_mean_log_ratio_of_the_policys_own_samples(trained: Any) -> None:
    module, found, _ = trained
    prompts = [p.prompt_ids for p in scored_pairs()[::2][:20]]
    ratios = [
        naive_logprob(module.policy, p, r) - naive_logprob(module.reference.model, p, r)
        for p, r in zip(prompts, responses(module.policy, module), strict=True)
    ]
    assert found["kl"] == pytest.approx(np.mean(ratios), rel=1e-4)
    assert found["kl"] > 0.5  # two random models are far apart


def test_agreement_over_all_held_out_responses(trained: Any) -> None:
    """After centring by prompt: the slope and correlation of scipy, and the mean absolute difference."""
    module, found, _ = trained
    rows = [
        (tuple(p.prompt_ids), score, naive_logprob(module.policy, p.prompt_ids, ids), ids)
        for p in scored_pairs()
        for ids, score in ((p.chosen_ids, p.score_chosen), (p.rejected_ids, p.score_rejected))
    ]
    reference = [naive_logprob(module.reference.model, list(prompt), ids) for prompt, _, _, ids in rows]
    frame = pd.DataFrame([r[:3] for r in rows], columns=["prompt", "true", "policy"])
    frame["implicit"] = BETA * (frame["policy"] - reference)
    centred = frame[["true", "implicit"]] - frame.groupby("prompt")[["true", "implicit"]].transform("mean")
    fitted = stats.linregress(centred["true"], centred["implicit"])
    assert len(frame) == 96
    assert found["slope"] == pytest.approx(fitted.slope, rel=1e-4, abs=1e-5)
    assert found["pearson"] == pytest.approx(fitted.rvalue, rel=1e-4, abs=1e-5)
    ranked = centred["true"].round(9).rank().corr(centred["implicit"].rank())  # centring parts equal rewards by 1e-17
    assert found["spearman"] == pytest.approx(ranked, abs=1e-4)
    assert found["error"] == pytest.approx((centred["implicit"] - centred["true"]).abs().mean(), rel=1e-4)


def test_a_policy_that_is_its_reference_wins_half(tmp_path: Path) -> None:
    """Their samples are drawn apart: even on average, and not because they are the same texts."""
    module, data = make_module(seed=0), OracleData(reward)
    found = [OracleEvaluation(prompts=20, **SAMPLING | {"seed": s}).score_samples(data, module) for s in range(20)]
    rates = [f["win_rate"] for f in found]
    assert np.mean(rates) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(400))
    assert np.std(rates) > 0.02
    assert all(f["kl"] == pytest.approx(0, abs=1e-6) for f in found)


def test_runs_that_share_a_cache_sample_the_reference_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the figures of runs without one; another seed draws its own, and so do other weights."""
    sampled = models_sampled(monkeypatch)

    def score(cache: Path | None, seed: int = 3, policy: int = 1, reference: int = 0) -> dict[str, float]:
        module = make_module(seed=policy)
        module.reference = FrozenReference(tiny_model(seed=reference))
        module.reference.cache = cache
        oracle = OracleEvaluation(prompts=20, **SAMPLING | {"seed": seed})
        return oracle.score_samples(OracleData(reward), module)

    for change, draws in (({}, 1), ({}, 0), ({"policy": 2}, 0), ({"seed": 4}, 1), ({"reference": 5}, 1)):
        sampled.clear()
        with_cache = score(tmp_path, **change)
        assert (sampled.count("reference"), sampled.count("policy")) == (draws, 1), change
        assert with_cache == score(None, **change), change


@pytest.mark.parametrize(("oracle", "prompts"), [(None, 8), (reward, 0)])
def test_without_a_known_reward_or_prompts_nothing_is_written(oracle: Any, prompts: int, tmp_path: Path) -> None:
    module = make_module()
    fit(module, OracleData(oracle), tmp_path, OracleEvaluation(prompts=prompts), max_steps=1)
    assert not [name for name in module.latest if name.startswith("oracle/")]


def test_without_scores_of_the_pairs_there_is_no_agreement(tmp_path: Path) -> None:
    data = OracleData(reward)
    data.test_pairs = TokenizedPairs([replace(p, score_chosen=None, score_rejected=None) for p in scored_pairs()])
    module = make_module()
    fit(module, data, tmp_path, OracleEvaluation(prompts=4, max_new_tokens=4), max_steps=1)
    found = {name for name in module.latest if name.startswith("oracle/")}
    assert found == {"oracle/reward", "oracle/reference_reward", "oracle/win_rate", "oracle/kl"}


def test_what_the_environment_knows_exactly_is_added(tmp_path: Path) -> None:
    data, module, asked = OracleData(reward), make_module(), []

    def exact_metrics(policy: Any, reference: Any, beta: float) -> dict[str, float]:
        asked.append((policy, reference, beta))
        return {"exact_kl": 1.5}

    data.source.exact_metrics = exact_metrics
    fit(module, data, tmp_path, OracleEvaluation(prompts=2, max_new_tokens=2), max_steps=1)
    own = module.loss.beta  # whose optimum it is; the unit of rewards is another
    assert own != BETA
    assert asked == [(module.policy, module.reference.model, own)]
    assert module.latest["oracle/exact_kl"] == 1.5
