"""The environments as sources of pairs: rows, splits, true rewards, and their way through the data module's checks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats

from caldpo.data.load import load_pairs
from caldpo.data.raw_row import PairSource
from caldpo.data.sources.environment_pairs import EnvironmentPairs
from caldpo.data.sources.tabular_pairs import TabularPairs
from caldpo.environments.reviews.review_reward import reward
from caldpo.environments.tabular_environment import log_partition, optimum
from caldpo.models.tabular_model import TabularModel
from tests.helpers.messages import refused

TABLE: dict[str, Any] = {
    "prompts": 4,
    "responses": 6,
    "environment_seed": 2,
    "reference_spread": 1.0,
    "reward_spread": 1.0,
    "pairs_per_prompt": 500,
    "test_pairs_per_prompt": 10,
    "proposal": "reference",
    "label_sharpness": 1.0,
    "partition_beta": None,
    "seed": 0,
}
KEEP: dict[str, Any] = {"on_degenerate": "keep", "on_reversed_scores": "keep"}


def table_rows(split: str = "train", **keys: Any) -> list[tuple[int, int, int, float, float]]:
    found = []
    for row in TabularPairs(**{**TABLE, **keys}).rows(split):
        value: Any = row.value
        x, w, r = (int(value[k].strip()[1:]) for k in ("prompt", "chosen", "rejected"))
        found.append((x, w, r, value["score_chosen"], value["score_rejected"]))
    return found


def test_both_are_pair_sources() -> None:
    assert isinstance(EnvironmentPairs("reviews", 1, 1, 8.0, 0), PairSource)
    assert isinstance(TabularPairs(**TABLE), PairSource)


def test_every_review_row_is_a_valid_pair() -> None:
    source = EnvironmentPairs("reviews", train_pairs=200, test_pairs=50, label_sharpness=8.0, seed=0)
    for split, count in (("train", 200), ("test", 50)):
        pairs, report = load_pairs(source, split, **(KEEP | {"on_degenerate": "drop"}))
        assert report.kept == len(pairs) == count
        assert report.rejections == []
        assert all(p.score_chosen == source.reward(str(p.prompt), p.chosen) for p in pairs)
    assert source.reward("no prompt", "no review") == reward("no prompt", "no review")


def test_review_rows_are_a_function_of_split_and_seed() -> None:
    def texts(split: str, seed: int) -> list[Any]:
        return [row.value for row in EnvironmentPairs("reviews", 20, 20, 8.0, seed).rows(split)]

    assert texts("train", 0) == texts("train", 0)
    assert texts("train", 0) != texts("train", 1)
    assert texts("train", 0) != texts("test", 0)


@pytest.mark.parametrize(
    "source", [EnvironmentPairs("reviews", 1, 1, 8.0, 0), TabularPairs(**TABLE)], ids=["reviews", "tabular"]
)
def test_another_split_is_refused(source: PairSource) -> None:
    with refused("train", "test", key="dev"):
        source.rows("dev")


@pytest.mark.parametrize("sharpness", [0.0, -1.0])
def test_the_sharpness_is_positive_or_null(sharpness: float) -> None:
    with refused("> 0", "null", key="label_sharpness", value=sharpness):
        EnvironmentPairs("reviews", 1, 1, sharpness, 0)
    with refused("> 0", "null", key="label_sharpness", value=sharpness):
        TabularPairs(**{**TABLE, "label_sharpness": sharpness})


def test_table_pairs_are_of_different_responses_with_their_rewards() -> None:
    rewards = TabularPairs(**TABLE).environment.rewards()
    rows = table_rows()
    assert len(rows) == 4 * 500
    assert len(table_rows("test")) == 4 * 10
    assert all(w != r for _, w, r, _, _ in rows)
    assert all((sw, sr) == (rewards[x, w].item(), rewards[x, r].item()) for x, w, r, sw, sr in rows)


@pytest.mark.parametrize("proposal", ["reference", "uniform"])
def test_table_responses_come_from_the_proposal(proposal: str) -> None:
    environment = TabularPairs(**TABLE).environment
    q = environment.reference().exp() if proposal == "reference" else torch.full((4, 6), 1 / 6, dtype=torch.float64)
    counts = torch.zeros(4, 6)
    for x, w, r, _, _ in table_rows(proposal=proposal):
        counts[x, [w, r]] += 1
    # both responses of a pair, given that they differ: P(y) ~ q(y) (1 - q(y))
    expected = q * (1 - q)
    expected = expected / expected.sum(dim=1, keepdim=True) * 1000
    for observed, wanted in zip(counts, expected, strict=True):
        assert stats.chisquare(observed.tolist(), wanted.tolist()).pvalue > 1e-3


def test_table_labels_are_bradley_terrys() -> None:
    rewards = TabularPairs(**TABLE).environment.rewards()
    pairs = [(x, w, r) for x, w, r, _, _ in table_rows()]
    gaps = [abs(rewards[x, w] - rewards[x, r]).item() for x, w, r in pairs]
    right = sum(rewards[x, w].item() > rewards[x, r].item() for x, w, r in pairs)
    probabilities = [1 / (1 + math.exp(-gap)) for gap in gaps]
    spread = sum(p * (1 - p) for p in probabilities) ** 0.5
    assert abs(right - sum(probabilities)) < 3.3 * spread
    assert all(sw > sr for *_, sw, sr in table_rows(label_sharpness=None))


def test_partition_scores_over_beta_are_the_optimums_log_ratios() -> None:
    environment = TabularPairs(**TABLE).environment
    ratio = optimum(environment.reference(), environment.rewards(), 0.3) - environment.reference()
    for x, w, r, sw, sr in table_rows("test", partition_beta=0.3):
        assert sw / 0.3 == pytest.approx(ratio[x, w].item())
        assert sr / 0.3 == pytest.approx(ratio[x, r].item())


def test_table_reward_of_any_response() -> None:
    source = TabularPairs(**TABLE)
    rewards = source.environment.rewards()
    assert source.reward("x2", " y5") == rewards[2, 5].item()
    assert source.reward("x2", "rubbish") == rewards[2].min().item()


def test_exact_metrics_of_models() -> None:
    source = TabularPairs(**TABLE)
    environment = source.environment
    model = TabularModel(4, 6, 2, 1.0)
    policy, reference = model.load_policy(), model.load_policy()
    unmoved = source.exact_metrics(policy, reference, beta=0.3)
    assert unmoved["exact_kl"] == pytest.approx(0.0, abs=1e-9)
    with torch.no_grad():
        policy.table.copy_(optimum(environment.reference(), environment.rewards(), 0.3))  # type: ignore[operator]
    best = source.exact_metrics(policy, reference, beta=0.3)
    partition = log_partition(environment.reference(), environment.rewards(), 0.3)
    assert best["kl_to_optimum"] == pytest.approx(0.0, abs=1e-9)
    assert best["objective"] == pytest.approx(0.3 * partition.mean().item(), abs=1e-6)
    assert best["objective"] > unmoved["objective"]


def test_a_table_of_other_sizes_is_refused() -> None:
    other = TabularModel(4, 5, 2, 1.0).load_policy()
    with refused("4 prompts", "6 responses", key="data", value="tabular", remedy="model=tabular"):
        TabularPairs(**TABLE).exact_metrics(other, other, beta=0.1)


def test_expected_labels_are_the_pairs_in_proportion() -> None:
    rewards = TabularPairs(**TABLE).environment.rewards()
    rows = table_rows(pairs_per_prompt=3000, labels="expected")
    assert len(rows) == 4 * 3000
    counts = torch.zeros(4, 6, 6, dtype=torch.float64)
    for x, w, r, sw, sr in rows:
        counts[x, w, r] += 1
        assert (sw, sr) == (rewards[x, w].item(), rewards[x, r].item())
    for x in range(4):
        gaps = rewards[x][:, None] - rewards[x][None, :]
        labelled = (counts[x] > 30) & (counts[x].T > 30)
        odds = (counts[x] / counts[x].T).log()
        assert (odds - gaps)[labelled].abs().max() < 0.04  # rounding to whole rows; drawn ones differ by 0.2 and more
    assert table_rows(pairs_per_prompt=300, labels="expected", seed=0) == table_rows(
        pairs_per_prompt=300, labels="expected", seed=1
    )
    assert all(sw > sr for *_, sw, sr in table_rows(labels="expected", label_sharpness=None))


def test_a_reward_shift_moves_scores_alone() -> None:
    plain, shifted = table_rows(), table_rows(reward_shift=3.0)
    assert [row[:3] for row in plain] == [row[:3] for row in shifted]
    moves = {
        x: {round(b - a, 9) for (y, *_, a, _), (*_, b, _) in zip(plain, shifted, strict=True) if y == x}
        for x in range(4)
    }
    assert all(len(move) == 1 for move in moves.values())
    assert len(set.union(*moves.values())) == 4
    # scores less beta log Z are the optimum's log-ratios, with or without
    together = zip(table_rows(partition_beta=0.3), table_rows(partition_beta=0.3, reward_shift=3.0), strict=True)
    assert all(a[3:] == pytest.approx(b[3:]) for a, b in together)


def test_the_objectives_own_beta() -> None:
    model = TabularModel(4, 6, 2, 1.0)
    policy, reference = model.load_policy(), model.load_policy()
    fixed = TabularPairs(**TABLE, objective_beta=0.3)
    assert fixed.exact_metrics(policy, reference, beta=5.0) == TabularPairs(**TABLE).exact_metrics(
        policy, reference, 0.3
    )
    assert fixed.exact_metrics(policy, reference, beta=5.0) != TabularPairs(**TABLE).exact_metrics(
        policy, reference, 5.0
    )
