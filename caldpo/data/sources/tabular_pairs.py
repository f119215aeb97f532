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
from caldpo.environments.bradley_terry import labelled_row
from caldpo.environments.tabular_environment import (
    Table,
    TabularEnvironment,
    exact_metrics,
    log_partition,
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

    def __post_init__(self) -> None:
        sizes_and_seed = self.prompts, self.responses, self.environment_seed
        self.environment = TabularEnvironment(*sizes_and_seed, self.reference_spread, self.reward_spread)

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield the pairs of ``train`` or ``test``, prompt by prompt."""
        counts = {"train": self.pairs_per_prompt, "test": self.test_pairs_per_prompt}
        if split not in counts:
            raise CaldpoError("no such split: the tabular environment has train and test", key=split)
        return self._rows(split, counts[split])

    def reward(self, prompt: str, response: str) -> float:
        """Return the true reward; for a response outside the table, the lowest of the prompt."""
        e = self.environment
        prompts = {prompt_text(x): x for x in range(e.prompts)}
        responses = {response_text(y).strip(): y for y in range(e.responses)}
        row = e.rewards()[prompts[prompt.strip()]]
        return row[responses[response.strip()]].item() if response.strip() in responses else row.min().item()

    def exact_metrics(self, policy: PreTrainedModel, reference: PreTrainedModel, beta: float) -> dict[str, float]:
        """Compute :func:`caldpo.environments.tabular_environment.exact_metrics`; ``beta`` is reward per nat.

        Raises:
            CaldpoError: policy or reference is no ``caldpo.models.tabular_model`` of the environment's sizes.
        """
        return exact_metrics(self._table(policy), self._table(reference), self.environment.rewards(), beta)

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
            for i in range(pairs_per_prompt):
                responses = [(response_text(y), rewards[x, y].item()) for y in _two_different(weights[x], rng)]
                row = labelled_row(prompt_text(x), responses[0], responses[1], self.label_sharpness, rng)
                for side in ("score_chosen", "score_rejected"):
                    row[side] -= shift[x].item()
                yield RawRow(f"{split}[{x}, {i}]", row)


def _two_different(weights: list[float], rng: random.Random) -> tuple[int, int]:
    """Draw two responses independently, given that they differ."""
    while True:
        first, second = rng.choices(range(len(weights)), weights, k=2)
        if first != second:
            return first, second
