"""Which settings are tried, and which of them is chosen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from caldpo.losses.search_space import Choices, Range, SearchSpace
from caldpo.studies.setting_choice import PRACTITIONER, TRUTH, choose, scored_trial
from caldpo.studies.trial_points import as_overrides, proposed_point, quasi_random_points

SPACE: SearchSpace = {
    "optim.lr": Range(1e-4, 1e-2, "test"),
    "loss.beta": Range(0.0, 1.0, "test", log=False),
    "loss.form": Choices(("a", "b"), "test"),
}


def test_points_are_spread_evenly_in_the_scale_of_each_key() -> None:
    points = quasi_random_points(SPACE, 64, seed=0)
    decades = [math.log10(point["optim.lr"]) for point in points]
    for values, edges in ((decades, np.linspace(-4, -2, 9)), ([p["loss.beta"] for p in points], np.linspace(0, 1, 9))):
        counts = np.histogram(values, edges)[0]
        assert counts.sum() == 64
        assert counts.min() >= 7  # of 8; independent draws would leave about 3 in some
        assert counts.max() <= 9
    assert sum(point["loss.form"] == "a" for point in points) in (31, 32, 33)


def test_more_trials_leave_the_first_as_they_are() -> None:
    assert quasi_random_points(SPACE, 9, seed=3)[:4] == quasi_random_points(SPACE, 4, seed=3)
    assert quasi_random_points(SPACE, 4, seed=3) != quasi_random_points(SPACE, 4, seed=4)


def test_every_loss_is_tried_at_the_same_rates() -> None:
    alone = {"optim.lr": SPACE["optim.lr"]}
    rates = [point["optim.lr"] for point in quasi_random_points(SPACE, 8, seed=1)]
    assert [point["optim.lr"] for point in quasi_random_points(alone, 8, seed=1)] == rates


def test_overrides_are_read_back_as_they_were() -> None:
    assert as_overrides({"optim.lr": 0.0005, "loss.clip": True, "loss.form": "a"}) == [
        "optim.lr=0.0005",
        "loss.clip=true",
        "loss.form=a",
    ]


def test_proposals_depend_on_earlier_trials_alone_and_go_where_they_were_good() -> None:
    pytest.importorskip("optuna")

    def score(point: dict[str, Any]) -> float:
        return 1 - abs(math.log10(point["optim.lr"]) + 2.5) - abs(point["loss.beta"] - 0.8)

    earlier = [(point, score(point)) for point in quasi_random_points(SPACE, 20, seed=0)]
    proposed = proposed_point(SPACE, earlier, seed=5)
    assert proposed == proposed_point(SPACE, list(earlier), seed=5)
    outside = {"optim.lr": 1.0, "loss.beta": 0.5, "loss.form": "a"}
    assert proposed == proposed_point(SPACE, [(outside, 9.0), *earlier], seed=5)
    later = [score(proposed_point(SPACE, earlier, seed=seed)) for seed in range(8)]
    assert np.mean(later) > np.mean([value for _, value in earlier])


def record(judge: list[float], accuracy: list[float], reward: list[Any]) -> dict[str, Any]:
    by_prompt = {"judge_win_rate": judge, "reward": reward}
    return {"status": "finished", "by_prompt": by_prompt, "by_pair": {"accuracy": accuracy}}


def test_practitioner_and_truth_choose_by_their_own_measures() -> None:
    records = [
        record([1, 0], [0.5, 0.5], [0.0, 1.0]),  # seen 0.5, true 0.5
        record([1, 1], [1.0, 0.5], [0.2, 0.2]),  # seen 0.875, true 0.2
        record([1, 0], [1.0, 1.0], [0.9, 0.9]),  # seen 0.75, true 0.9
        record([1, 1], [1.0, 0.5], [0.1, 0.9]),  # as the second one, later
        {"status": "diverged"},
        record([1, 1], [1.0, 1.0], [5.0, None]),  # a reward that is not finite
    ]
    trials = [scored_trial(i, {}, r, ["judge_win_rate", "accuracy"]) for i, r in enumerate(records)]
    chosen = choose(trials)
    assert (chosen[PRACTITIONER].number, chosen[TRUTH].number) == (1, 2)
    assert trials[1].scores == {PRACTITIONER: 0.875, TRUTH: 0.2}
    only_accuracy = [scored_trial(i, {}, r, ["accuracy"]) for i, r in enumerate(records)]
    assert choose(only_accuracy)[PRACTITIONER].number == 2
    assert choose([trials[4]]) == {}
