"""Where each loss ends, against the known optimum: the losses themselves, minimised exactly in float64.

The unlimited-data limit is the expectation over all pairs of different responses, drawn from the reference and
labelled by Bradley-Terry (or without noise), so that no sampling blurs the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from caldpo.config.conf_dir import conf_dir
from caldpo.data.sources.tabular_pairs import TabularPairs
from caldpo.environments.reward_agreement import reward_agreement
from caldpo.environments.tabular_environment import (
    TabularEnvironment,
    exact_metrics,
    kl_divergence,
    log_partition,
    objective,
    optimum,
)
from caldpo.losses.base import PreferenceLoss
from caldpo.types import PairLogps

ENVIRONMENT = TabularEnvironment(prompts=8, responses=16, seed=0, reference_spread=1.0, reward_spread=1.0)
REFERENCE, REWARDS = ENVIRONMENT.reference(), ENVIRONMENT.rewards()


@dataclass(frozen=True)
class Pairs:
    """Indices of prompt, chosen and rejected response, and the weight of each pair."""

    prompt: Tensor
    chosen: Tensor
    rejected: Tensor
    weight: Tensor

    def logps(self, logits: Tensor, scores: Tensor = REWARDS) -> PairLogps:
        policy, ones = logits.log_softmax(dim=1), torch.ones_like(self.weight)
        return PairLogps(
            policy[self.prompt, self.chosen],
            policy[self.prompt, self.rejected],
            REFERENCE[self.prompt, self.chosen],
            REFERENCE[self.prompt, self.rejected],
            ones,
            ones,
            scores[self.prompt, self.chosen],
            scores[self.prompt, self.rejected],
        )

    def mean_log_ratios(self, logits: Tensor) -> tuple[float, float]:
        """Weighted means of the chosen and of the rejected log-ratio."""
        logps = self.logps(logits)
        return tuple((self.weight * r).sum().item() for r in (logps.chosen_log_ratio, logps.rejected_log_ratio))  # type: ignore[return-value]


def every_pair(noise: bool) -> Pairs:
    """All ordered pairs with their probabilities."""
    prompts, responses = REWARDS.shape
    x, w, r = (i.flatten() for i in torch.meshgrid(*map(torch.arange, (prompts, responses, responses)), indexing="ij"))
    x, w, r = (i[w != r] for i in (x, w, r))
    gap = REWARDS[x, w] - REWARDS[x, r]
    label = torch.sigmoid(gap) if noise else (gap > 0).double()
    weight = (REFERENCE[x, w] + REFERENCE[x, r]).exp() * label
    return Pairs(x, w, r, weight / weight.sum())


NOISY, CLEAN = every_pair(noise=True), every_pair(noise=False)


def make(name: str, **keys: object) -> PreferenceLoss:
    loss = instantiate(OmegaConf.load(conf_dir() / "loss" / f"{name}.yaml"), **keys)
    assert isinstance(loss, PreferenceLoss)
    return loss


def minimise(loss: PreferenceLoss, pairs: Pairs, scores: Tensor = REWARDS) -> Tensor:
    """Logits at which the expected loss is stationary."""
    logits = REFERENCE.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, history_size=50, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (pairs.weight * loss(pairs.logps(logits, scores)).loss).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6, "not converged"
    return logits.detach()


def descend(loss: PreferenceLoss, pairs: Pairs, steps: int) -> Tensor:
    """Logits after some steps of Adam: for losses that may have no minimum."""
    logits = REFERENCE.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (pairs.weight * loss(pairs.logps(logits)).loss).sum().backward()
        optimizer.step()
    return logits.detach()


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_dpo_recovers_the_optimum_although_its_chosen_reward_falls(beta: float) -> None:
    logits = minimise(make("dpo", beta=beta), NOISY)
    metrics = exact_metrics(logits, REFERENCE, REWARDS, beta)
    assert metrics["kl_to_optimum"] < 1e-9
    assert metrics["kl_from_optimum"] < 1e-9
    assert metrics["objective"] == pytest.approx(metrics["objective_optimum"], rel=1e-9)
    chosen, rejected = NOISY.mean_log_ratios(logits)
    assert rejected < chosen < 0

    implicit = beta * (logits.log_softmax(dim=1) - REFERENCE)
    prompts = torch.arange(8)[:, None].expand_as(implicit)
    got = reward_agreement(*(t.flatten().tolist() for t in (implicit, REWARDS, prompts)))
    assert got == pytest.approx({"slope": 1.0, "pearson": 1.0, "spearman": 1.0, "error": 0.0}, abs=1e-5)


def test_conservative_dpo_stays_nearer_to_the_reference() -> None:
    smooth = minimise(make("dpo", beta=0.5, label_smoothing=0.2), NOISY)
    plain = exact_metrics(optimum(REFERENCE, REWARDS, 0.5), REFERENCE, REWARDS, 0.5)
    assert exact_metrics(smooth, REFERENCE, REWARDS, 0.5)["exact_kl"] < 0.5 * plain["exact_kl"]


def test_reverse_kl_f_dpo_ends_where_dpo_does() -> None:
    logits = minimise(make("f_dpo", beta=0.5, divergence="reverse_kl"), NOISY)
    assert torch.allclose(logits.log_softmax(dim=1), optimum(REFERENCE, REWARDS, 0.5), atol=1e-6)


def test_without_label_noise_dpo_diverges_and_cal_dpo_does_not() -> None:
    dpo = [descend(make("dpo", beta=0.5), CLEAN, steps) for steps in (500, 2000)]
    cal_dpo = [descend(make("cal_dpo", beta=0.5), CLEAN, steps) for steps in (500, 2000)]
    early, late = (exact_metrics(logits, REFERENCE, REWARDS, 0.5) for logits in dpo)
    assert late["kl_to_optimum"] > early["kl_to_optimum"] > 0.5
    assert late["kl_from_optimum"] > 2 * early["kl_from_optimum"] > 2
    assert CLEAN.mean_log_ratios(dpo[1])[0] < 2 * CLEAN.mean_log_ratios(dpo[0])[0] < 0
    # Adam goes round its minimum in steps that differ between processors: near it in distribution, early and late
    minimum = minimise(make("cal_dpo", beta=0.5), CLEAN)
    assert all(kl_divergence(logits, minimum) < 1e-5 for logits in cal_dpo)
    settled = exact_metrics(cal_dpo[1], REFERENCE, REWARDS, 0.5)
    assert settled["kl_to_optimum"] < early["kl_to_optimum"]
    assert settled["kl_from_optimum"] < early["kl_from_optimum"] / 3
    assert CLEAN.mean_log_ratios(cal_dpo[1])[0] > 0


@pytest.mark.parametrize(("beta", "tolerance"), [(1.0, 1e-9), (0.5, 1e-3), (0.1, 1e-3)])
def test_score_targets_less_the_log_partition_recover_the_optimum(beta: float, tolerance: float) -> None:
    # at beta 1 contrast and calibration have the same minimum; below it the contrast, which has no beta, pulls a bit
    scores = REWARDS - beta * log_partition(REFERENCE, REWARDS, beta)[:, None]
    logits = minimise(make("cal_dpo", beta=beta, targets="scores", score_center=0.0), NOISY, scores)
    metrics = exact_metrics(logits, REFERENCE, REWARDS, beta)
    assert metrics["kl_to_optimum"] < tolerance
    assert metrics["kl_from_optimum"] < tolerance


def test_score_targets_come_nearer_to_the_optimum_than_half() -> None:
    half = minimise(make("cal_dpo", beta=0.5), NOISY)
    paired = minimise(make("cal_dpo", beta=0.5, targets="scores"), NOISY)
    plain = minimise(make("cal_dpo", beta=0.5, targets="scores", score_center=0.0), NOISY)
    distances = [exact_metrics(t, REFERENCE, REWARDS, 0.5)["kl_to_optimum"] for t in (half, paired, plain)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] > 0.01  # none of them knows the partition


def test_with_few_pairs_dpo_overfits_and_cal_dpo_does_not() -> None:
    reached: dict[str, list[float]] = {"dpo": [], "cal_dpo": []}
    for seed in range(5):
        source = TabularPairs(8, 16, 0, 1.0, 1.0, 40, 1, "reference", 1.0, None, seed)
        rows = [row.value for row in source.rows("train")]
        indices = [[int(str(row[k]).strip()[1:]) for row in rows] for k in ("prompt", "chosen", "rejected")]  # type: ignore[index]
        x, w, r = map(torch.tensor, indices)
        pairs = Pairs(x, w, r, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64))
        for name, values in reached.items():
            logits = descend(make(name, beta=0.1), pairs, steps=1000)
            values.append(objective(logits, REFERENCE, REWARDS, 0.1))
    best = objective(optimum(REFERENCE, REWARDS, 0.1), REFERENCE, REWARDS, 0.1)
    at_reference = objective(REFERENCE, REFERENCE, REWARDS, 0.1)
    dpo, cal_dpo = (sum(values) / len(values) for values in reached.values())
    assert dpo + 0.05 < cal_dpo < best / 2
    assert min(reached["cal_dpo"]) > at_reference + 0.2
    assert max(reached["dpo"]) - min(reached["dpo"]) > 2 * (max(reached["cal_dpo"]) - min(reached["cal_dpo"]))
