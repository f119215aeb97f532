"""The exact quantities of the tabular environment against scipy and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from scipy.optimize import minimize

from caldpo.environments.tabular_environment import (
    TabularEnvironment,
    apportion,
    exact_metrics,
    expected_reward,
    kl_divergence,
    log_partition,
    objective,
    optimum,
    pair_probabilities,
)

SMALL = TabularEnvironment(prompts=3, responses=4, seed=5, reference_spread=1.0, reward_spread=1.0)


def test_environment_is_a_function_of_its_seed() -> None:
    again = TabularEnvironment(3, 4, 5, 1.0, 1.0)
    other = TabularEnvironment(3, 4, 6, 1.0, 1.0)
    assert torch.equal(SMALL.reference(), again.reference())
    assert torch.equal(SMALL.rewards(), again.rewards())
    assert not torch.equal(SMALL.rewards(), other.rewards())
    assert not torch.equal(SMALL.rewards().log_softmax(1), SMALL.reference())
    assert SMALL.reference().exp().sum(dim=1).tolist() == pytest.approx([1.0] * 3)
    assert TabularEnvironment(3, 4, 5, 0.0, 1.0).reference().exp().tolist() == [pytest.approx([0.25] * 4)] * 3
    assert torch.allclose(TabularEnvironment(3, 4, 5, 1.0, 2.0).rewards(), 2 * SMALL.rewards())


def test_kl_against_scipy() -> None:
    p, q = SMALL.reference(), SMALL.rewards().log_softmax(dim=1)
    expected = sum(stats.entropy(a, b) for a, b in zip(p.exp().numpy(), q.exp().numpy(), strict=True)) / 3
    assert kl_divergence(p, q) == pytest.approx(expected, rel=1e-12)
    assert kl_divergence(p + 3.0, q - 2.0) == pytest.approx(expected, rel=1e-12)  # logits do as well
    assert kl_divergence(p, p) == pytest.approx(0.0, abs=1e-15)


def test_kl_of_a_policy_that_never_gives_a_response() -> None:
    p = torch.tensor([[0.0, -math.inf, 0.0]])
    q = torch.zeros(1, 3)
    assert kl_divergence(p, q) == pytest.approx(math.log(1.5))
    assert kl_divergence(q, p) == math.inf


def test_optimum_by_hand() -> None:
    reference, rewards = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[1.0, 0.0]])
    best = optimum(reference, rewards, beta=0.5)
    weight = 0.25 * math.exp(2.0)
    assert best.exp().tolist()[0] == pytest.approx([weight / (weight + 0.75), 0.75 / (weight + 0.75)])
    assert log_partition(reference, rewards, 0.5).item() == pytest.approx(math.log(weight + 0.75))
    assert expected_reward(best, rewards) == pytest.approx(weight / (weight + 0.75))


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_no_policy_beats_the_optimum(beta: float) -> None:
    reference, rewards = SMALL.reference(), SMALL.rewards()

    def loss(logits: list[float]) -> tuple[float, list[float]]:
        """The negative objective, written out here, and its gradient: finite differences stop short of 1e-6."""
        table = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        logp = table.reshape(3, 4).log_softmax(dim=1)
        value = -(logp.exp() * (rewards - beta * (logp - reference.log_softmax(dim=1)))).sum(dim=1).mean()
        value.backward()
        assert value.item() == pytest.approx(-objective(table.detach().reshape(3, 4), reference, rewards, beta))
        return value.item(), table.grad.tolist()

    found = minimize(loss, reference.flatten().tolist(), jac=True, method="BFGS", options={"gtol": 1e-9})
    best = optimum(reference, rewards, beta)
    highest = objective(best, reference, rewards, beta)
    assert highest == pytest.approx(-found.fun, abs=1e-6)
    assert highest >= -found.fun - 1e-12
    assert highest == pytest.approx(beta * log_partition(reference, rewards, beta).mean().item(), rel=1e-12)
    assert kl_divergence(torch.tensor(found.x).reshape(3, 4), best) < 1e-4


def test_log_ratio_of_the_optimum_is_reward_less_partition() -> None:
    reference, rewards = SMALL.reference(), SMALL.rewards()
    ratio = optimum(reference, rewards, 0.3) - reference
    assert torch.allclose(ratio, rewards / 0.3 - log_partition(reference, rewards, 0.3)[:, None])


def test_exact_metrics_name_the_right_quantities() -> None:
    reference, rewards = SMALL.reference(), SMALL.rewards()
    policy = (reference + 0.7 * rewards).log_softmax(dim=1)
    best = optimum(reference, rewards, 0.5)
    got = exact_metrics(policy, reference, rewards, 0.5)
    p, q, b = (t.exp().numpy() for t in (policy, reference, best))
    reward = float((p * rewards.numpy()).sum() / 3)
    kl = sum(stats.entropy(x, y) for x, y in zip(p, q, strict=True)) / 3
    assert got == pytest.approx(
        {
            "exact_reward": reward,
            "exact_kl": kl,
            "objective": reward - 0.5 * kl,
            "objective_optimum": float((b * rewards.numpy()).sum() / 3)
            - 0.5 * sum(stats.entropy(x, y) for x, y in zip(b, q, strict=True)) / 3,
            "kl_to_optimum": sum(stats.entropy(x, y) for x, y in zip(p, b, strict=True)) / 3,
            "kl_from_optimum": sum(stats.entropy(x, y) for x, y in zip(b, p, strict=True)) / 3,
            "regret": 0.5 * sum(stats.entropy(x, y) for x, y in zip(p, b, strict=True)) / 3,
        }
    )
    # what falls short of the best objective is beta KL(pi || pi*), exactly
    assert got["objective_optimum"] - got["objective"] == pytest.approx(0.5 * got["kl_to_optimum"])


def test_a_shift_of_a_prompts_rewards_changes_neither_optimum_nor_regret() -> None:
    shifted = TabularEnvironment(3, 4, 5, 1.0, 1.0, shift_spread=2.0)
    reference, rewards, moved = SMALL.reference(), SMALL.rewards(), shifted.rewards()
    difference = moved - rewards
    assert difference.std(dim=1).max() < 1e-12
    assert difference[:, 0].std() > 0.1
    assert difference.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert torch.equal(reference, shifted.reference())
    assert torch.allclose(optimum(reference, rewards, 0.3), optimum(reference, moved, 0.3))
    policy = (reference + 0.7 * rewards).log_softmax(dim=1)
    assert exact_metrics(policy, reference, moved, 0.3) == pytest.approx(exact_metrics(policy, reference, rewards, 0.3))


@pytest.mark.parametrize("sharpness", [1.0, None])
def test_pair_probabilities_by_enumeration(sharpness: float | None) -> None:
    proposal, rewards = SMALL.reference()[0].exp(), SMALL.rewards()[0]
    got = pair_probabilities(proposal, rewards, sharpness)
    differ = 1 - sum(p.item() ** 2 for p in proposal)
    for i in range(4):
        for j in range(4):
            gap = (rewards[i] - rewards[j]).item()
            label = 1 / (1 + math.exp(-gap)) if sharpness else float(gap > 0)
            drawn = 2 * proposal[i].item() * proposal[j].item() / differ
            assert got[i, j].item() == pytest.approx(0.0 if i == j else drawn * label)


def test_apportion_by_hand() -> None:
    assert apportion(torch.tensor([0.5, 0.3, 0.2]), 10).tolist() == [5, 3, 2]
    assert apportion(torch.tensor([0.41, 0.33, 0.26]), 10).tolist() == [4, 3, 3]  # the rest .1, .3, .6
    assert apportion(torch.tensor([[0.25, 0.25], [0.25, 0.25]]), 6).tolist() == [[2, 2], [1, 1]]
