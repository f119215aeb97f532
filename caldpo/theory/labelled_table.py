"""Labels of a tabular environment in their exact proportions: as many as any loss could ask for.

Every ordered pair of different responses of a prompt is drawn as often as its probability says, so that there is no
sampling noise, and a loss that reads the whole step sees plain rows. All responses have one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caldpo.environments.bradley_terry import preference_probability
from caldpo.environments.tabular_environment import Table
from caldpo.types import PairLogps

ROWS_PER_PROMPT = 2048
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class LabelledRows:
    """Rows of labelled responses, each as likely; a row of one response repeats it as the absent one."""

    prompt: Int[Tensor, " rows"]
    chosen: Int[Tensor, " rows"]
    rejected: Int[Tensor, " rows"]
    chosen_present: Float[Tensor, " rows"] | None = None
    rejected_present: Float[Tensor, " rows"] | None = None

    def logps(self, policy: Table, reference: Table, scores: Table) -> PairLogps:
        """The rows' log-probs under tables of log-probs, nats, with their scores."""

        def of(table: Table, response: Tensor) -> Tensor:
            return table[self.prompt, response]

        one = torch.ones(len(self.prompt), dtype=policy.dtype)
        return PairLogps(
            of(policy, self.chosen),
            of(policy, self.rejected),
            of(reference, self.chosen),
            of(reference, self.rejected),
            one,
            one,
            of(scores, self.chosen),
            of(scores, self.rejected),
            self.chosen_present,
            self.rejected_present,
        )


def paired_rows(rewards: Table, sharpness: float | None) -> LabelledRows:
    """All ordered pairs of different responses, uniformly proposed, labelled by Bradley-Terry.

    Args:
        rewards: true rewards.
        sharpness: P(first is chosen) = sigmoid(sharpness x reward gap); None always prefers the better one.
    """
    responses = rewards.shape[1]
    ordered = [(w, r) for w in range(responses) for r in range(responses) if w != r]

    def probability(row: list[float], choice: tuple[int, int]) -> float:
        return preference_probability(row[choice[0]], row[choice[1]], sharpness)

    prompt, picked = _in_proportion(rewards, ordered, probability)
    pairs = torch.tensor(ordered)[picked]
    return LabelledRows(prompt, pairs[:, 0], pairs[:, 1])


def single_rows(rewards: Table, sharpness: float) -> LabelledRows:
    """All responses, uniformly proposed, labelled good with probability ``sigmoid(sharpness r)``, else bad."""
    labelled = [(y, good) for y in range(rewards.shape[1]) for good in (True, False)]

    def probability(row: list[float], choice: tuple[int, bool]) -> float:
        good = preference_probability(row[choice[0]], 0.0, sharpness)
        return good if choice[1] else 1 - good

    prompt, picked = _in_proportion(rewards, labelled, probability)
    rows = torch.tensor([(y, float(good)) for y, good in labelled], dtype=torch.float64)[picked]
    response, good = rows[:, 0].long(), rows[:, 1]
    return LabelledRows(prompt, response, response, good, 1 - good)


def _in_proportion(
    rewards: Table, choices: Sequence[Choice], probability: Callable[[list[float], Choice], float]
) -> tuple[Tensor, Tensor]:
    """Prompts and indices of choices, each choice as often as its share of :data:`ROWS_PER_PROMPT` rounds to."""
    prompts, picked = [], []
    for x, row in enumerate(rewards.tolist()):
        weights = torch.tensor([probability(row, choice) for choice in choices], dtype=torch.float64)
        ends = (weights.cumsum(0) / weights.sum() * ROWS_PER_PROMPT).round().long()
        counts = ends.diff(prepend=ends.new_zeros(1))
        picked.append(torch.arange(len(choices)).repeat_interleave(counts))
        prompts.append(torch.full((ROWS_PER_PROMPT,), x))
    return torch.cat(prompts), torch.cat(picked)
