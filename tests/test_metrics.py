"""Metrics by hand, and means that do not depend on how pairs fell into batches."""

from __future__ import annotations

import pytest
import torch

from caldpo.data.collate import collate
from caldpo.data.pair import TokenizedPair
from caldpo.metric_definitions import WITH_REFERENCE, WITHOUT_REFERENCE
from caldpo.metrics import OF_CHOSEN, OF_REJECTED, WeightedMeans, loss_metrics, metric_weights, pair_metrics
from caldpo.types import LossOutput, PairBatch, PairLogps
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_pairs


def logps(reference: bool = True) -> PairLogps:
    t = torch.tensor
    return PairLogps(
        t([-10.0, -20.0, -5.0]),
        t([-12.0, -15.0, -6.0]),
        t([-11.0, -18.0, -5.0]) if reference else None,
        t([-10.0, -18.0, -6.0]) if reference else None,
        t([3.0, 4.0, 1.0]),
        t([3.0, 4.0, 2.0]),
    )


def test_values_by_hand() -> None:
    metrics = pair_metrics(logps(), reward_beta=0.5)
    assert {k: v.tolist() for k, v in metrics.items()} == {
        "logps/chosen": [-10, -20, -5],
        "logps/rejected": [-12, -15, -6],
        "log_ratios/chosen": [1, -2, 0],
        "log_ratios/rejected": [-2, 3, 0],
        "rewards/chosen": [0.5, -1, 0],
        "rewards/rejected": [-1, 1.5, 0],
        "rewards/margins": [1.5, -2.5, 0],
        "rewards/accuracies": [1, 0, 0.5],  # a tie is chance
        "displacement": [0, 1, 0],
    }


def test_without_a_reference_only_what_needs_none() -> None:
    """As the table of definitions says; with a reference the same values, and those that need it."""
    without, metrics = pair_metrics(logps(reference=False), 0.1), pair_metrics(logps(), 0.1)
    assert without.keys() == {metric.name for metric in WITHOUT_REFERENCE}
    assert metrics.keys() == {metric.name for metric in (*WITHOUT_REFERENCE, *WITH_REFERENCE)}
    assert all(torch.equal(value, metrics[name]) for name, value in without.items())
    assert {"logps/chosen", "logps/rejected"} <= without.keys()


def unpaired_batch() -> PairBatch:
    """Three rows: a desirable response, an undesirable one, and filler like the first."""
    rows = [
        TokenizedPair([5], [6, 2], [2], None, None, 0, "a", True),
        TokenizedPair([5], [2], [7, 8, 2], None, None, 1, "b", False),
        TokenizedPair([5], [6, 2], [2], None, None, 0, "a", True),
    ]
    return collate(rows, 0, weight=[1.0, 1.0, 0.0])


def test_absent_responses_are_in_no_mean() -> None:
    """Of three rows the first has a chosen response alone, the second a rejected one, the third is filler."""
    means = WeightedMeans()
    batch = unpaired_batch()
    values = {"loss": torch.tensor([2.0, 4.0, 9.0])} | pair_metrics(logps(), 0.5)
    means.update(values, batch.weight, metric_weights(batch, values))
    assert means.floats() == {
        "loss": 3,  # over rows
        "logps/chosen": -10,
        "logps/rejected": -15,
        "log_ratios/chosen": 1,
        "log_ratios/rejected": 3,
        "rewards/chosen": 0.5,
        "rewards/rejected": 1.5,
        "displacement": 0,
    }, "no row has both responses: no margin and no accuracy"


def test_each_metric_of_responses_has_a_weight() -> None:
    """One that is named nowhere is about rows with both responses, of which there are none here."""
    metrics = pair_metrics(logps(), 0.1)
    weights = metric_weights(unpaired_batch(), [*metrics, "own/metric", "loss", "terms/chosen", "diagnostics/clamped"])
    assert weights.keys() == {*metrics, "own/metric"}
    assert weights["own/metric"].tolist() == [0, 0, 0]
    assert {*OF_CHOSEN, *OF_REJECTED} <= metrics.keys()
    assert metric_weights(collate(tiny_pairs(2), 0), metrics) == {}


@pytest.mark.parametrize("cuts", [[6], [1, 5], [2, 2, 2], [1] * 6])
def test_own_weights_do_not_depend_on_the_cut(cuts: list[int]) -> None:
    values, weight = torch.arange(6.0), torch.tensor([1.0, 1, 1, 1, 1, 0])
    own = torch.tensor([1.0, 0, 0, 1, 0, 0])
    means = WeightedMeans()
    for value, w, o in zip(values.split(cuts), weight.split(cuts), own.split(cuts), strict=True):
        means.update({"a": value, "b": value}, w, {"b": o})
    assert means.floats() == {"a": 2.0, "b": 1.5}


def test_loss_terms_are_named() -> None:
    one = torch.ones(2, requires_grad=True)
    values = loss_metrics(LossOutput(3 * one, {"contrast": one, "nll": 2 * one}, {"clamped": 0 * one}))
    assert {k: v.tolist() for k, v in values.items()} == {
        "loss": [3, 3],
        "terms/contrast": [1, 1],
        "terms/nll": [2, 2],
        "diagnostics/clamped": [0, 0],
    }
    assert not any(v.requires_grad for v in values.values())


@pytest.mark.parametrize("cuts", [[10], [3, 3, 3, 1], [1] * 10, [7, 3]])
def test_means_do_not_depend_on_the_cut(cuts: list[int]) -> None:
    torch.manual_seed(0)
    values, weight = torch.randn(10), torch.tensor([1.0] * 8 + [0.0] * 2)
    means = WeightedMeans()
    for part, w in zip(values.split(cuts), weight.split(cuts), strict=True):
        means.update({"a": part, "b": part**2}, w)
    found = means.compute()
    assert found["a"].item() == pytest.approx(values[:8].mean().item(), rel=1e-6)
    assert found["b"].item() == pytest.approx((values[:8] ** 2).mean().item(), rel=1e-6)


def test_filler_does_not_leak_even_when_not_a_number() -> None:
    means = WeightedMeans()
    means.update({"a": torch.tensor([2.0, float("nan")])}, torch.tensor([1.0, 0.0]))
    assert means.compute()["a"].item() == 2.0


def test_reset_forgets_values_and_names() -> None:
    means = WeightedMeans()
    means.update({"a": torch.ones(2)}, torch.ones(2))
    with refused("a", "b", kind=ValueError):
        means.update({"b": torch.ones(2)}, torch.ones(2))
    means.reset()
    means.update({"b": torch.full((2,), 4.0)}, torch.ones(2))
    assert {k: v.item() for k, v in means.compute().items()} == {"b": 4.0}
