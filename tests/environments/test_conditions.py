"""What a study varies: nested label noise and sizes, shifted prompts, who writes, quantile scores, a third split."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from caldpo.data.sources import environment_pairs, policy_samples
from caldpo.data.sources.environment_pairs import EnvironmentPairs
from caldpo.environments.pair_sampling import BLOCK, PairRecipe, sample_pairs
from caldpo.environments.reviews.review_prompts import parse_prompt
from caldpo.environments.text_environment import SPLITS
from caldpo.environments.text_environments import TEXT_ENVIRONMENTS
from caldpo.models.tiny_model import TinyModel
from tests.environments.reviews.test_sft import ARGUMENTS
from tests.helpers.messages import refused

ENVIRONMENTS = ("reviews", "arithmetic")
# of the pairs of train and test that the reviews had before there were conditions
REVIEWS_DIGEST = "d5c2b635105f8f64cd1b967639b7cd5509e2626276dbc8da6ce1c275e09efe25"


def values(environment: str, split: str = "train", model: TinyModel | None = None, **keys: Any) -> list[dict[str, Any]]:
    arguments = {"train_pairs": 60, "test_pairs": 20, "validation_pairs": 20, "label_sharpness": 8.0, "seed": 0}
    source = EnvironmentPairs(environment, **(arguments | keys))  # type: ignore[arg-type]
    if model is not None:
        source.attach_model(model)
    return [row.value for row in source.rows(split)]  # type: ignore[misc]


def tiny(environment: str, cache: Path) -> TinyModel:
    return TinyModel(**ARGUMENTS, cache=str(cache), environment=environment)  # type: ignore[arg-type]


def test_the_default_pairs_are_those_of_before_in_every_process() -> None:
    code = (
        "import json, hashlib; from caldpo.environments.pair_sampling import *;"
        "recipe = PairRecipe('reviews', 0, 8.0);"
        "data = [list(sample_pairs(recipe, 'train', 1600)), list(sample_pairs(recipe, 'test', 256))];"
        "print(hashlib.sha256(json.dumps(data).encode()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    recipe = PairRecipe("reviews", 0, 8.0)
    here = [list(sample_pairs(recipe, "train", 1600)), list(sample_pairs(recipe, "test", 256))]
    assert hashlib.sha256(json.dumps(here).encode()).hexdigest() == other.stdout.strip() == REVIEWS_DIGEST


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_prompt_is_in_two_splits_whatever_the_seeds(environment: str) -> None:
    prompts = {
        (split, seed): {row["prompt"] for row in sample_pairs(PairRecipe(environment, seed, 8.0), split, 1000)}
        for split in SPLITS
        for seed in (0, 1)
    }
    for (split, seed), found in prompts.items():
        assert len(found) == 1000
        for (other, other_seed), theirs in prompts.items():
            assert split == other or not found & theirs, (split, seed, other, other_seed)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_fewer_pairs_are_the_first_of_more_over_blocks_with_different_prompts(environment: str) -> None:
    recipe = PairRecipe(environment, 0, 8.0)
    many = list(sample_pairs(recipe, "validation", 3 * BLOCK["validation"]))
    assert len({row["prompt"] for row in many}) == len(many) == 768
    for count in (1, 100, 256, 257, 600):
        assert list(sample_pairs(recipe, "validation", count)) == many[:count]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_label_noise_flips_a_nested_share_and_no_test_label(environment: str) -> None:
    clean = values(environment, train_pairs=1600)
    flipped: list[set[int]] = []
    for noise in (0.1, 0.2, 0.5):
        noisy = values(environment, train_pairs=1600, label_noise=noise)
        places = {i for i, (a, b) in enumerate(zip(clean, noisy, strict=True)) if a != b}
        for i in places:
            assert (noisy[i]["chosen"], noisy[i]["rejected"]) == (clean[i]["rejected"], clean[i]["chosen"])
            assert noisy[i]["score_chosen"] == clean[i]["score_rejected"]
        assert stats.binomtest(len(places), 1600, noise).pvalue > 1e-3
        flipped.append(places)
    assert flipped[0] < flipped[1] < flipped[2]
    assert values(environment, "test", label_noise=0.5) == values(environment, "test")
    assert values(environment, "validation", label_noise=0.5) != values(environment, "validation")
    with refused("0.5", key="label_noise", value=0.6):
        values(environment, label_noise=0.6)


def test_shifted_prompts_are_of_training_alone() -> None:
    for environment in ENVIRONMENTS:
        for split in ("validation", "test"):
            assert values(environment, split, prompts="shifted") == values(environment, split)
    signs = [parse_prompt(row["prompt"]).sign for row in values("reviews", train_pairs=1600, prompts="shifted")]  # type: ignore[union-attr]
    assert stats.binomtest(signs.count(-1), 1600, 0.1).pvalue > 1e-3
    lengths = {row["prompt"].count("+") + 1 for row in values("arithmetic", train_pairs=300, prompts="shifted")}
    assert lengths == {5}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_on_policy_pairs_are_samples_that_differ_in_reward(
    environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in SPLITS:
        monkeypatch.setitem(BLOCK, split, 16)
    model = tiny(environment, tmp_path)
    keys: dict[str, Any] = {"on_policy": True, "model": model, "seed": 11}
    first = values(environment, cache_dir=str(tmp_path), train_pairs=20, **keys)
    again = values(environment, cache_dir=str(tmp_path / "another"), train_pairs=40, **keys)
    assert first == again[:20]  # drawn anew, and nested over blocks
    truth = TEXT_ENVIRONMENTS[environment].reward
    for row in first:
        assert row["score_chosen"] == truth(row["prompt"], row["chosen"]) != row["score_rejected"]
    assert [r["prompt"] for r in first[:16]] == [r["prompt"] for r in values(environment, train_pairs=16, seed=11)]
    drawn: list[int] = []
    monkeypatch.setattr(policy_samples, "_draw", lambda *_: drawn.append(1))
    assert values(environment, cache_dir=str(tmp_path), train_pairs=20, **keys) == first  # from the cache


def test_samples_of_another_model_are_refused(tmp_path: Path) -> None:
    for model in (None, tiny("arithmetic", tmp_path)):
        with refused("reviews", key="data.source.on_policy", value=True, remedy="model=tiny"):
            values("reviews", on_policy=True, model=model)
        with refused("reviews", key="data.source.scores", value="quantiles", remedy="model=tiny"):
            values("reviews", scores="quantiles", model=model)


def test_quantiles_are_shares_of_samples_not_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in SPLITS:
        monkeypatch.setitem(BLOCK, split, 8)
    fixed = {0.5: " overall it is good .", -0.5: " overall it is dull .", 2.0: " overall it is superb ."}

    def samples(model: object, prompts: list[str], per_prompt: int, **_: object) -> list[list[str]]:
        assert per_prompt == 3
        return [list(fixed.values()) for _ in prompts]

    monkeypatch.setattr(environment_pairs, "policy_samples", samples)
    keys: dict[str, Any] = {"model": tiny("reviews", tmp_path), "quantile_samples": 3, "seed": 12, "train_pairs": 11}
    plain = values("reviews", train_pairs=11, seed=12)
    scored = values("reviews", scores="quantiles", **keys)
    assert [r["chosen"] for r in scored] == [r["chosen"] for r in plain]
    truth = TEXT_ENVIRONMENTS["reviews"].reward
    for row, before in zip(scored, plain, strict=True):
        rewards = [truth(row["prompt"], text) for text in fixed.values()]
        for side in ("score_chosen", "score_rejected"):
            expected = stats.percentileofscore(rewards, before[side], kind="weak") / 100
            assert row[side] == pytest.approx(expected)


def test_quantiles_do_not_depend_on_the_number_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in SPLITS:
        monkeypatch.setitem(BLOCK, split, 8)
    model = tiny("arithmetic", tmp_path)
    keys: dict[str, Any] = {"scores": "quantiles", "model": model, "quantile_samples": 4, "seed": 13}
    few = values("arithmetic", train_pairs=3, cache_dir=str(tmp_path / "a"), **keys)
    many = values("arithmetic", train_pairs=12, cache_dir=str(tmp_path / "b"), **keys)
    assert few == many[:3]
    assert {round(4 * row["score_chosen"]) / 4 for row in many} == {row["score_chosen"] for row in many}
