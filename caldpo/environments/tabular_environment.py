"""Define a finite environment whose optimum is known: ``pi*(y|x) = pi_ref(y|x) exp(r(x,y) / beta) / Z(x)``.

Policies are tables of logits of shape ``(prompts, responses)``, so that every expectation is a sum. ``pi*``
maximises ``E[r] - beta KL(pi || pi_ref)`` (Rafailov et al. 2023, arXiv 2305.18290, Eq. 4); each loss's optimum
can be checked rather than believed. All quantities are float64, in nats and units of reward, and means over
prompts, which are equally likely.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caldpo.environments.bradley_terry import preference_probability

Table = Float[Tensor, "prompts responses"]


@dataclass(frozen=True, slots=True)
class TabularEnvironment:
    """Reference policy and true rewards, both drawn from normal distributions.

    A shift adds a constant to all rewards of a prompt, a bias of its mean. Neither Bradley-Terry labels nor the optimum
    change, nor does the mean reward over prompts; what reads rewards or labels of single responses may.
    """

    prompts: int
    responses: int
    seed: int
    reference_spread: float  # standard deviation of the reference's logits; 0 makes it uniform
    reward_spread: float  # standard deviation of the rewards
    shift_spread: float = 0.0  # standard deviation, over prompts, of the constants; their mean is 0

    def reference(self) -> Table:
        """Draw its log-probs."""
        return _normal_table(self, "reference", self.reference_spread).log_softmax(dim=1)

    def rewards(self) -> Table:
        """Draw the true rewards."""
        return _normal_table(self, "rewards", self.reward_spread) + self.shifts()[:, None]

    def shifts(self) -> Float[Tensor, " prompts"]:
        """Draw the constants that are part of the rewards of each prompt."""
        constants = _normal_table(replace(self, responses=1), "shifts", self.shift_spread)[:, 0]
        return constants - constants.mean()


def prompt_text(prompt: int) -> str:
    return f"x{prompt}"


def response_text(response: int) -> str:
    return f" y{response}"


def optimum(reference: Table, rewards: Table, beta: float) -> Table:
    """Return the log-probs of ``pi*``; ``beta`` is the weight of the KL term, reward per nat."""
    return (reference.double() + rewards.double() / beta).log_softmax(dim=1)


def log_partition(reference: Table, rewards: Table, beta: float) -> Float[Tensor, " prompts"]:
    """Return ``log Z(x) = log E_ref[exp(r / beta)]``, the difference of ``r / beta`` and ``log pi*/pi_ref``."""
    return (reference.double().log_softmax(dim=1) + rewards.double() / beta).logsumexp(dim=1)


def expected_reward(policy: Table, rewards: Table) -> float:
    """Return ``E_x E_{y~pi}[r(x, y)]``, from logits or log-probs."""
    return (policy.double().softmax(dim=1) * rewards.double()).sum(dim=1).mean().item()


def kl_divergence(p: Table, q: Table) -> float:
    """Return ``E_x KL(p || q)`` in nats, from logits or log-probs; a response that p never gives counts 0."""
    log_p, log_q = p.double().log_softmax(dim=1), q.double().log_softmax(dim=1)
    terms = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
    return terms.sum(dim=1).mean().item()


def objective(policy: Table, reference: Table, rewards: Table, beta: float) -> float:
    """Return ``E[r] - beta KL(pi || pi_ref)``, largest for ``pi*``, where it is ``beta E[log Z]``."""
    return expected_reward(policy, rewards) - beta * kl_divergence(policy, reference)


def exact_metrics(policy: Table, reference: Table, rewards: Table, beta: float) -> dict[str, float]:
    """Measure how far a policy is from ``pi*``, without sampling.

    Returns:
        ``exact_reward`` and ``exact_kl`` (to the reference, nats); ``objective`` and ``objective_optimum``, its
        largest value; ``regret``, how far the objective falls short of it; ``kl_to_optimum`` KL(pi || pi*) and
        ``kl_from_optimum`` KL(pi* || pi), nats.
    """
    best = optimum(reference, rewards, beta)
    values = {
        "exact_reward": expected_reward(policy, rewards),
        "exact_kl": kl_divergence(policy, reference),
        "objective": objective(policy, reference, rewards, beta),
        "objective_optimum": objective(best, reference, rewards, beta),
        "kl_to_optimum": kl_divergence(policy, best),
        "kl_from_optimum": kl_divergence(best, policy),
    }
    return values | {"regret": values["objective_optimum"] - values["objective"]}


def pair_probabilities(
    proposal: Float[Tensor, " responses"], rewards: Float[Tensor, " responses"], sharpness: float | None
) -> Float[Tensor, "responses responses"]:
    """Return the probability of each pair (chosen, rejected) of a prompt.

    Its two responses are drawn independently from ``proposal``, given that they differ, and labelled by
    :func:`caldpo.environments.bradley_terry.preference_probability`.
    """
    drawn = proposal.double()[:, None] * proposal.double()[None, :]
    drawn.fill_diagonal_(0.0)
    values = rewards.tolist()
    labels = [[preference_probability(first, second, sharpness) for second in values] for first in values]
    joint = drawn * torch.tensor(labels, dtype=torch.float64)
    return joint / joint.sum()


def apportion(probabilities: Float[Tensor, "*shape"], total: int) -> Int[Tensor, "*shape"]:
    """Share ``total`` out in proportion to ``probabilities``, as whole numbers (largest remainders, Hamilton)."""
    quotas = probabilities.flatten() * total
    counts = quotas.floor().long()
    # of equal remainders the first: a stable order on all machines
    order = (quotas - counts).argsort(descending=True, stable=True)
    counts[order[: total - int(counts.sum())]] += 1
    return counts.reshape(probabilities.shape)


def _normal_table(environment: TabularEnvironment, name: str, spread: float) -> Table:
    # Python's generator: the same numbers with every version of PyTorch.
    rng = random.Random(f"{environment.seed}/{name}")
    table = [[rng.gauss(0.0, 1.0) for _ in range(environment.responses)] for _ in range(environment.prompts)]
    return spread * torch.tensor(table, dtype=torch.float64)
