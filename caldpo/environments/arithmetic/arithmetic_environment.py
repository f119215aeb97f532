"""The chains of sums as an environment: a correct chain against the same chain with one slip."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from caldpo.environments.arithmetic.chain_reward import chain_reward
from caldpo.environments.arithmetic.chains import ANSWER, EQUALS, SLIPS, correct_chain, slipped_chain
from caldpo.environments.arithmetic.sums import (
    COMMAND,
    LARGEST,
    PLUS,
    STOP,
    TERMS,
    Sum,
    sample_sums,
    sum_count,
)
from caldpo.environments.text_environment import Split, TextEnvironment

CORPUS: dict[str, float] = {"correct": 0.6, "slipped": 0.4}
"""Shares of chains in the SFT corpus."""


class Arithmetic(TextEnvironment[Sum]):
    """Chains of sums; shifted prompts are shorter sums."""

    name = "arithmetic"
    max_length = 64
    first_words = (COMMAND,)
    later_words = (PLUS, EQUALS, STOP, ANSWER, *map(str, range(max(TERMS) * LARGEST + max(SLIPS) + 1)))

    def prompt_count(self, split: Split, *, shifted: bool = False) -> int:
        return sum_count(split, shifted=shifted)

    def sample_prompts(self, split: Split, count: int, rng: random.Random, *, shifted: bool = False) -> list[Sum]:
        return sample_sums(split, count, rng, shifted=shifted)

    def two_responses(self, prompt: Sum, rng: random.Random) -> tuple[str, str]:
        """Write the correct chain, and the same with one slip."""
        return correct_chain(prompt), slipped_chain(prompt, rng)

    def demonstrations(self, prompts: Sequence[Sum], rng: random.Random) -> list[str]:
        """Write correct and slipped chains in the shares of :data:`CORPUS`."""
        kinds = rng.choices(list(CORPUS), list(CORPUS.values()), k=len(prompts))
        return [
            correct_chain(prompt) if kind == "correct" else slipped_chain(prompt, rng)
            for prompt, kind in zip(prompts, kinds, strict=True)
        ]

    def reward(self, prompt: str, response: str) -> float:
        return chain_reward(prompt, response)

    def corpus_facts(self) -> list[Any]:
        rng = random.Random(0)
        prompts = sample_sums("train", 200, rng)
        return [CORPUS, [(str(p), correct_chain(p), slipped_chain(p, rng)) for p in prompts]]
