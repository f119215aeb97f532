"""REBEL at samples of the policy is RLOO: held to a plain implementation of that, and to its limit cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caldpo.losses.dpo import DPO
from caldpo.losses.rebel import REBEL
from caldpo.metric_definitions import ROLLOUTS
from caldpo.nonfinite.step_dump import sequences_of
from caldpo.rollouts import sampled_pairs
from caldpo.types import PairLogps
from tests.callbacks.oracle_data import reward, words
from tests.rollouts.prompts import STEP, Prompts, exact_model, rollouts, trained

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def logprob(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """Log-prob of one response by itself, nats, differentiable."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=1)[range(len(response)), response].sum()


def rloo_gradient(prompts: list[list[int]], samples: list[list[list[int]]], beta: float) -> dict[str, Tensor]:
    """RLOO as its paper has it, for any number of samples per prompt; the mean over prompts, to be descended.

    ``-1/k sum_i (R_i - mean of the other R) log pi(y_i)``, ``R = r - beta log(pi / pi_ref)`` held fixed.
    """
    policy, reference = exact_model(1), exact_model(0)
    objective = torch.zeros((), dtype=torch.float64)
    for prompt, responses in zip(prompts, samples, strict=True):
        logps = torch.stack([logprob(policy, prompt, y) for y in responses])
        with torch.no_grad():
            penalty = logps - torch.stack([logprob(reference, prompt, y) for y in responses])
            true = torch.tensor([reward(words(prompt), words(y)) for y in responses]).double()  # a batch has float32
            regularised = true - beta * penalty
            others = (regularised.sum() - regularised) / (len(responses) - 1)
        objective = objective - ((regularised - others) * logps).mean()
    (objective / len(prompts)).backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_gradient_is_that_of_rloo(tmp_path: Path, accumulation: int) -> None:
    """Up to the factor 4 beta, whatever the micro-batches of a step."""
    beta, made = 0.3, rollouts()
    _, (gradient,) = trained(tmp_path, made, Prompts(STEP // accumulation), REBEL(beta=beta), accumulation=accumulation)
    sequences = [sequence for batch in made.drawn for sequence in sequences_of(batch)]
    assert len(made.drawn) == accumulation
    assert len(sequences) == STEP
    expected = rloo_gradient([p for p, _, _ in sequences], [[y, z] for _, y, z in sequences], beta)
    assert gradient.keys() == expected.keys()
    assert max(float(g.abs().max()) for g in gradient.values()) > 1e-3
    for name, value in gradient.items():
        torch.testing.assert_close(value, 4 * beta * expected[name], **CLOSE)


def test_samples_are_ordered_by_the_true_reward_of_their_texts(tmp_path: Path) -> None:
    made = rollouts()
    trained(tmp_path, made, Prompts())
    (batch,), (metrics,) = made.drawn, made.metrics
    assert metrics.keys() == {metric.name for metric in ROLLOUTS}
    seen = list(zip(sequences_of(batch), batch.score_chosen.tolist(), batch.score_rejected.tolist(), strict=True))
    prompts = {tuple(p.prompt_ids) for p in Prompts().train_pairs[:]}
    for (prompt, chosen, rejected), high, low in seen:
        assert tuple(prompt) in prompts
        assert high == pytest.approx(reward(words(prompt), words(chosen)), abs=1e-6)
        assert low == pytest.approx(reward(words(prompt), words(rejected)), abs=1e-6)
        assert high >= low
        assert 1 <= len(chosen) <= 5
    means = [(high + low) / 2 for _, high, low in seen]
    assert metrics["rollouts/reward"].tolist() == pytest.approx(means)
    cut = [(int(chosen[-1] != 2) + int(rejected[-1] != 2)) / 2 for (_, chosen, rejected), _, _ in seen]
    assert metrics["rollouts/unfinished"].tolist() == cut


@pytest.mark.parametrize("loss", [REBEL(beta=0.3), DPO(beta=0.3)], ids=["rebel", "dpo"])
def test_equal_samples_teach_nothing_and_stay_in_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Any
) -> None:
    sample = sampled_pairs.sample_responses
    equal: set[int] = set()

    def some_equal(*args: Any, **keys: Any) -> list[list[int]]:
        drawn = sample(*args, **keys)
        return [drawn[i - i % 2] if i // 2 in equal else drawn[i] for i in range(len(drawn))]

    monkeypatch.setattr(sampled_pairs, "sample_responses", some_equal)
    made = rollouts()
    equal.update(range(STEP))
    _, (nothing,) = trained(tmp_path / "all", made, Prompts(), loss)
    assert all(float(g.abs().max()) < 1e-15 for g in nothing.values())
    assert made.metrics[0]["rollouts/equal"].tolist() == [1.0] * STEP

    equal -= set(range(1, STEP))  # the first alone
    made = rollouts()
    _, (gradient,) = trained(tmp_path / "one", made, Prompts(), loss)
    assert made.metrics[0]["rollouts/equal"].tolist() == [1.0] + [0.0] * (STEP - 1)
    equal.clear()
    unchanged = rollouts()
    _, (whole,) = trained(tmp_path / "none", unchanged, Prompts(), loss)
    alone = one_pair(loss, *sequences_of(unchanged.drawn[0])[0])
    for name, value in gradient.items():
        torch.testing.assert_close(value, whole[name] - alone[name] / STEP, rtol=1e-8, atol=1e-10)


def one_pair(loss: Any, prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, Tensor]:
    """Gradient of the loss of one pair, by plain autograd."""
    policy, reference = exact_model(1), exact_model(0)
    with torch.no_grad():
        fixed = [logprob(reference, prompt, y)[None] for y in (chosen, rejected)]
    lengths = [torch.tensor([float(len(y))]) for y in (chosen, rejected)]
    scores = [torch.tensor([reward(words(prompt), words(y))]) for y in (chosen, rejected)]
    own = [logprob(policy, prompt, y)[None] for y in (chosen, rejected)]
    loss(PairLogps(*own, *fixed, *lengths, *scores)).loss.sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def test_samples_are_those_of_seed_step_and_micro_batch(tmp_path: Path) -> None:
    """The same again, others at each step, in each micro-batch and with another seed."""
    runs = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        made = rollouts(seed)
        trained(tmp_path / name, made, Prompts(STEP // 2), steps=2, accumulation=2)
        runs[name] = [[(c, r) for _, c, r in sequences_of(batch)] for batch in made.drawn]
    assert runs["one"] == runs["same"]
    assert all(one != other for one, other in zip(runs["one"], runs["other"], strict=True))
    assert len({str(batch) for batch in runs["one"]}) == 4


def test_the_policy_learns_the_reward(tmp_path: Path) -> None:
    """More of the word that is rewarded, from its own samples alone."""
    made = rollouts(max_new_tokens=6)
    trained(tmp_path, made, Prompts(), REBEL(beta=0.05), steps=60)
    means = [float(metrics["rollouts/reward"].mean()) for metrics in made.metrics]
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.5
