"""The reviews as an environment: writers of different skill answer a request for a review."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

from caldpo.environments.reviews.review_prompts import Prompt, prompt_count, sample_prompts
from caldpo.environments.reviews.review_reward import reward
from caldpo.environments.reviews.vocabulary import PROMPT_WORDS, WORDS
from caldpo.environments.reviews.writers import WRITERS, Writer, write
from caldpo.environments.text_environment import Split, TextEnvironment

CORPUS: dict[str, float] = {"weak": 0.1, "plain": 0.7, "good": 0.2}
"""Shares of the writers in the SFT corpus; the preference data draws on all writers equally, experts included."""


class Reviews(TextEnvironment[Prompt]):
    """Short reviews; shifted prompts ask for praise nine times in ten, standard ones every second time."""

    name = "reviews"
    max_length = 64
    first_words = PROMPT_WORDS[:1]
    later_words = tuple(word for word in WORDS if word != PROMPT_WORDS[0])

    def prompt_count(self, split: Split, *, shifted: bool = False) -> int:
        return prompt_count(split, shifted=shifted)

    def sample_prompts(self, split: Split, count: int, rng: random.Random, *, shifted: bool = False) -> list[Prompt]:
        return sample_prompts(split, count, rng, shifted=shifted)

    def two_responses(self, prompt: Prompt, rng: random.Random) -> tuple[str, str]:
        """Let two writers, drawn from the whole pool, answer until their rewards differ."""
        text, writers = str(prompt), list(WRITERS.values())
        while True:
            first, second = (write(prompt, rng.choice(writers), rng) for _ in range(2))
            if reward(text, first) != reward(text, second):
                return first, second

    def demonstrations(self, prompts: Sequence[Prompt], rng: random.Random) -> list[str]:
        """Let mostly plain writers answer, in the shares of :data:`CORPUS`."""
        writers = rng.choices([WRITERS[name] for name in CORPUS], list(CORPUS.values()), k=len(prompts))
        return [write(prompt, writer, rng) for prompt, writer in zip(prompts, writers, strict=True)]

    def reward(self, prompt: str, response: str) -> float:
        return reward(prompt, response)

    def corpus_facts(self) -> list[Any]:
        return [CORPUS, _text_sample(tuple(WRITERS.values()))]


@functools.lru_cache(maxsize=1)
def _text_sample(writers: tuple[Writer, ...]) -> list[tuple[str, ...]]:
    """Sample prompts, and each writer's review of them."""
    rng = random.Random(0)
    return [(str(p), *(write(p, w, rng) for w in writers)) for p in sample_prompts("train", 200, rng)]
