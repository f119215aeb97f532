"""What a study's tables and page say of records made by hand: diverged runs, rows that saw the truth, other sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from caldpo import compose
from caldpo.config.conf_dir import conf_dir
from caldpo.studies.run_store import DIVERGED, FINISHED
from caldpo.studies.setting_choice import CHOICES, PRACTITIONER, TRUTH, Trial
from caldpo.studies.study_plan import Arm, StudyPlan
from caldpo.studies.study_report import write_report
from caldpo.studies.study_results import LEVEL, ArmResult, StudyResults
from caldpo.studies.study_settings import StudySettings
from caldpo.studies.study_statistics import detectable_difference
from tests.helpers.messages import names

SEEDS, PROMPTS = 5, 12


@pytest.fixture(scope="module")
def settings() -> StudySettings:
    cfg = OmegaConf.load(conf_dir() / "study.yaml")
    assert isinstance(cfg, DictConfig)
    del cfg["hydra"]
    return StudySettings.of(OmegaConf.merge(cfg, {"seeds": SEEDS, "resamples": 60}))  # type: ignore[arg-type]


def record(reward: float, seed: int, prompts: int = PROMPTS) -> dict[str, Any]:
    """A run of this mean reward; infinite: it diverged."""
    common = {"cpu_seconds": 1.0, "wall_seconds": 1.0, "versions": {}, "overrides": [str(reward), str(seed)]}
    if not np.isfinite(reward):
        return common | {"status": DIVERGED, "error": "not finite"}
    # what seeds and prompts share, and a little of the row's own
    shared = np.random.default_rng(seed).normal(size=prompts)
    own = 0.01 * np.random.default_rng([seed, int(1000 * abs(reward))]).normal()
    return common | {
        "status": FINISHED,
        "by_prompt": {"reward": (reward + own + shared).tolist(), "win_rate": [0.5] * prompts, "kl": [1.0] * prompts},
        "by_pair": {"accuracy": [1.0] * prompts},
        "scalars": {},
        "frontier": [],
    }


def arm(row: str, rewards: list[float], *, is_loss: bool = True, condition: str = "reviews", **keys: Any) -> ArmResult:
    """A row with the same runs by both choices; no rewards: every trial diverged."""
    trial = Trial(0, {"optim.lr": 0.1}, record(0.0 if rewards else np.inf, 0), {})
    finals = {choice: [record(reward, 1 + i, **keys) for i, reward in enumerate(rewards)] for choice in CHOICES}
    tried = [trial] if is_loss else []
    chosen = dict.fromkeys(CHOICES, trial) if is_loss and rewards else {}
    return ArmResult(Arm(condition, row, (), {}, {}, is_loss), tried, chosen, finals if rewards else {})


def difference(results: StudyResults, row: str, measure: str = "reward") -> Any:
    found = results.differences
    return found[(found["row"] == row) & (found["measure"] == measure) & (found["choice"] == TRUTH)].iloc[0]


def test_a_row_is_not_called_the_higher_one_on_the_seeds_that_it_survived(
    settings: StudySettings, tmp_path: Path
) -> None:
    lost = [1.0, 1.0, 1.0, np.inf, np.inf]
    results = StudyResults(settings, [arm("dpo", [0.0] * 5), arm("ipo", lost), arm("cpo", [1.0] * 5)])
    assert difference(results, "cpo")["significant"]
    found = difference(results, "ipo")
    assert (found["seeds"], found["significant"]) == (3, False)
    assert found["p_holm"] < LEVEL, "by the test alone it would be"
    below = StudyResults(settings, [arm("dpo", [0.0] * 5), arm("ipo", [r - 2 for r in lost])])
    assert difference(below, "ipo")["significant"], "what flatters it does not make it worse"
    baseline = StudyResults(settings, [arm("dpo", lost), arm("ipo", [0.0] * 5), arm("cpo", [2.0] * 5)])
    assert [difference(baseline, row)["significant"] for row in ("ipo", "cpo")] == [False, True]
    write_report(results, tmp_path)
    names((tmp_path / "index.md").read_text(), "`ipo` 2 of 5")


def test_what_saw_the_truth_is_no_contender(settings: StudySettings) -> None:
    best = arm("best_of_n", [9.0] * 5, is_loss=False)
    results = StudyResults(settings, [arm("dpo", [0.0] * 5), arm("ipo", [1.0] * 5), best])
    assert results.leader("reviews", PRACTITIONER) == ("ipo", [])
    means = results.means("reviews")
    found = means[means["choice"] == TRUTH].set_index("row")["probability_best"]
    assert found["ipo"] == pytest.approx(1.0)
    assert np.isnan(found["best_of_n"])


def test_a_loss_without_a_finite_setting_ranks_last(settings: StudySettings) -> None:
    arms = [arm(row, [value] * 5) for row, value in (("dpo", 0.0), ("ipo", 1.0), ("cpo", 2.0), ("kto", 3.0))]
    other = [arm(row, [value] * 5, condition="few") for row, value in (("dpo", 0.0), ("ipo", 1.0), ("cpo", 2.0))]
    found = StudyResults(settings, [*arms, *other, arm("kto", [], condition="few")]).ranks(TRUTH)
    assert found is not None
    assert found.ranks == {"dpo": 3.5, "ipo": 2.5, "cpo": 1.5, "kto": 2.5}


def test_a_report_of_nothing_but_runs_that_diverged(settings: StudySettings, tmp_path: Path) -> None:
    write_report(StudyResults(settings, [arm("dpo", []), arm("ipo", [])]), tmp_path)
    names((tmp_path / "index.md").read_text(), "`dpo` under reviews", "`ipo` under reviews")
    write_report(StudyResults(settings, [arm("dpo", [np.inf] * 5), arm("ipo", [np.inf] * 5)]), tmp_path)
    names((tmp_path / "index.md").read_text(), "`ipo` 5 of 5")


def test_rows_with_other_prompts_are_paired_by_seed(settings: StudySettings) -> None:
    """As one that drops prompts: its first ones are not those of another row."""
    results = StudyResults(settings, [arm("dpo", [0.0] * 5), arm("qrpo", [1.0] * 5, prompts=9)])
    base, row = (np.array([np.mean(r["by_prompt"]["reward"]) for r in a.finals[TRUTH]]) for a in results.arms)
    assert difference(results, "qrpo")["difference"] == pytest.approx((row - base).mean())


def test_losses_that_train_on_the_true_reward_are_named(settings: StudySettings, tmp_path: Path) -> None:
    asked = dataclasses.replace(settings, losses=["dpo", "rebel"], beside=["rlhf"], conditions=["reviews"])
    arms, _ = StudyPlan(asked).arms()
    assert {made.row: made.reads_scores for made in arms} == {"dpo": False, "rebel": True, "rlhf": False}
    results = [dataclasses.replace(arm(made.row, [0.0] * 5), arm=made) for made in arms]
    write_report(StudyResults(settings, results[:1]), tmp_path)
    without = (tmp_path / "index.md").read_text().partition("## reviews")[0]
    write_report(StudyResults(settings, results), tmp_path)
    told = (tmp_path / "index.md").read_text().partition("## reviews")[0]
    names(told, "`rebel`")
    assert "`rebel`" not in without
    assert "`rlhf`" not in told


def test_power_is_that_of_all_comparisons(settings: StudySettings) -> None:
    def tuned(row: str) -> ArmResult:
        made = arm(row, [0.0] * 5)
        other = arm(row, [0.5, 0.7, 0.2, 0.4, 0.3])
        return ArmResult(made.arm, made.trials, made.chosen, {**made.finals, TRUTH: other.finals[TRUTH]})

    effects = StudyResults(settings, [tuned("dpo"), tuned("ipo"), tuned("cpo")]).choice_effects
    assert len(effects) == 3
    for _, cells in effects.iterrows():
        assert cells["detectable_corrected"] == detectable_difference(cells["sd"], 5, LEVEL / 3)
        assert cells["p_holm"] == pytest.approx(3 * cells["p"])


def test_an_interval_that_leaves_out_the_mean_is_drawn(settings: StudySettings, tmp_path: Path) -> None:
    arms = [arm("dpo", [0.0] * 5), arm("ipo", [1.0] * 5)]
    write_report(StudyResults(dataclasses.replace(settings, resamples=1), arms), tmp_path)
    assert (tmp_path / "rewards_reviews.svg").is_file()


@pytest.mark.parametrize("environment", ["reviews", "arithmetic"])
def test_pairs_with_equal_quantiles_are_kept(environment: str) -> None:
    """Their true rewards differ; without them a loss on quantiles had other pairs and prompts than the others."""
    assert compose([f"data={environment}"]).data.on_degenerate == "keep"
