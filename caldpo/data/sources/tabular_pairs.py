"""Generate preference pairs of a tabular environment, and measure a trained table against the known optimum."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel

from caldpo.config.bounds import NonNegative, NonNegativeInt, Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.raw_row import RawRow, RewardSource
from caldpo.environments.bradley_terry import labelled_row, preference_row
from caldpo.environments.tabular_environment import (
    Table,
    TabularEnvironment,
    apportion,
    exact_metrics,
    log_partition,
    pair_probabilities,
    prompt_text,
    response_text,
)
from caldpo.errors import CaldpoError


@validated
@dataclass(eq=False)
class TabularPairs(RewardSource):
    """Pairs of a finite environment (see ``caldpo.environments.tabular_environment``).

    A table does not generalise, so both splits are about the same prompts; their pairs are drawn apart.

    Args:
        prompts, responses: sizes of the table.
        environment_seed: of the reference policy and the rewards.
        reference_spread: standard deviation of the reference's logits.
        reward_spread: standard deviation of the rewards.
        pairs_per_prompt: of the training split.
        test_pairs_per_prompt: of the held-out split.
        proposal: distribution of the two (different) responses of a pair.
        label_sharpness: P(chosen is better) = sigmoid(sharpness x reward gap); None always prefers the better.
        partition_beta: None gives true rewards as scores; a number gives ``r - beta log Z(x)``, whose quotient by
            beta is the optimum's log-ratio itself.
        seed: of pairs and labels.
        labels: ``drawn`` draws responses and labels; ``expected`` shares a prompt's pairs out by their probability,
            both labels of two responses included: the more pairs, the nearer to unlimited data.
        reward_shift: standard deviation, over prompts, of a constant that is added to all rewards of a prompt.
        objective_beta: of the objective ``E[r] - beta KL`` in :meth:`exact_metrics`, the same for every loss; None
            takes that of the loss.
    """

    name = "tabular"

    prompts: PositiveInt
    responses: Annotated[int, Field(ge=2)]
    environment_seed: NonNegativeInt
    reference_spread: NonNegative
    reward_spread: Positive
    pairs_per_prompt: PositiveInt
    test_pairs_per_prompt: PositiveInt
    proposal: Literal["reference", "uniform"]
    label_sharpness: Positive | None
    partition_beta: Positive | None
    seed: NonNegativeInt
    labels: Literal["drawn", "expected"] = "drawn"
    reward_shift: NonNegative = 0.0
    objective_beta: Positive | None = None

    def __post_init__(self) -> None:
        sizes_and_seed = self.prompts, self.responses, self.environment_seed
        spreads = self.reference_spread, self.reward_spread, self.reward_shift
        self.environment = TabularEnvironment(*sizes_and_seed, *spreads)

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield the pairs of ``train``, ``validation`` (as many as of the test split) or ``test``, prompt by prompt."""
        held_out = self.test_pairs_per_prompt
        counts = {"train": self.pairs_per_prompt, "validation": held_out, "test": held_out}
        if split not in counts:
            raise CaldpoError(f"no such split: the tabular environment has {', '.join(counts)}", key=split)
        return self._rows(split, counts[split])

    def reward(self, prompt: str, response: str) -> float:
        """Return the true reward; for a response outside the table, the lowest of the prompt."""
        e = self.environment
        prompts = {prompt_text(x): x for x in range(e.prompts)}
        responses = {response_text(y).strip(): y for y in range(e.responses)}
        row = e.rewards()[prompts[prompt.strip()]]
        return row[responses[response.strip()]].item() if response.strip() in responses else row.min().item()

    def exact_metrics(self, policy: PreTrainedModel, reference: PreTrainedModel, beta: float) -> dict[str, float]:
        """Compute :func:`caldpo.environments.tabular_environment.exact_metrics`; ``beta``: the loss's, reward per nat.

        Raises:
            CaldpoError: policy or reference is no ``caldpo.models.tabular_model`` of the environment's sizes.
        """
        return exact_metrics(
            self._table(policy), self._table(reference), self.environment.rewards(), self.objective_beta or beta
        )

    def _table(self, model: PreTrainedModel) -> Table:
        sizes = (self.environment.prompts, self.environment.responses)
        table = getattr(model, "table", None)
        if table is None or tuple(table.shape) != sizes:
            raise CaldpoError(
                f"the policy is no table of {sizes[0]} prompts x {sizes[1]} responses",
                key="data",
                value=self.name,
                remedy="use model=tabular with its sizes taken from the data",
            )
        return table.detach().cpu()

    def _rows(self, split: str, pairs_per_prompt: int) -> Iterator[RawRow]:
        e, rng = self.environment, random.Random(f"{self.seed}/{split}")
        rewards, reference = e.rewards(), e.reference()
        beta = self.partition_beta
        shift = beta * log_partition(reference, rewards, beta) if beta is not None else torch.zeros(e.prompts)
        weights = reference.exp().tolist() if self.proposal == "reference" else [[1.0] * e.responses] * e.prompts
        for x in range(e.prompts):
            scored = [(response_text(y), rewards[x, y].item()) for y in range(e.responses)]
            if self.labels == "drawn":
                pairs = (_two_different(weights[x], rng) for _ in range(pairs_per_prompt))
                rows = [labelled_row(prompt_text(x), scored[i], scored[j], self.label_sharpness, rng) for i, j in pairs]
            else:
                proposal = torch.tensor(weights[x], dtype=torch.float64)
                counts = apportion(pair_probabilities(proposal, rewards[x], self.label_sharpness), pairs_per_prompt)
                rows = [
                    preference_row(prompt_text(x), scored[i], scored[j])
                    for i, j in counts.nonzero().tolist()
                    for _ in range(int(counts[i, j]))
                ]
            for i, row in enumerate(rows):
                for side in ("score_chosen", "score_rejected"):
                    row[side] -= shift[x].item()
                yield RawRow(f"{split}[{x}, {i}]", row)


def _two_different(weights: list[float], rng: random.Random) -> tuple[int, int]:
    """Draw two responses independently, given that they differ."""
    while True:
        first, second = rng.choices(range(len(weights)), weights, k=2)
        if first != second:
            return first, second
