"""Sample preference pairs: two writers answer a prompt, the true reward decides (noisily) which is chosen."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

from caldpo.environments.bradley_terry import labelled_row
from caldpo.environments.reviews.review_prompts import Prompt, Split, sample_prompts
from caldpo.environments.reviews.review_reward import reward
from caldpo.environments.reviews.writers import WRITERS, write


def sample_pairs(split: Split, count: int, *, seed: int, sharpness: float | None) -> Iterator[dict[str, Any]]:
    """Yield rows ``prompt, chosen, rejected, score_chosen, score_rejected``, each with its own prompt.

    Scores are true rewards, so with noisy labels the chosen one's can be the lower. The two rewards of a pair
    always differ: a tie says nothing about quality and is drawn again.

    Prompts of the two splits never meet, whatever the seed; splits draw independently. ``sharpness`` is that of
    :func:`caldpo.environments.bradley_terry.preference_probability`.
    """
    return (dict(row) for row in _rows(split, count, seed, sharpness))


@functools.lru_cache(maxsize=2)  # both splits: the runs of a sweep that share a process share their pairs
def _rows(split: Split, count: int, seed: int, sharpness: float | None) -> tuple[dict[str, Any], ...]:
    rng, rows = random.Random(f"{seed}/{split}"), []
    for prompt in sample_prompts(split, count, rng):
        text = str(prompt)
        first, second = _two_responses(prompt, rng)
        rows.append(labelled_row(text, (first, reward(text, first)), (second, reward(text, second)), sharpness, rng))
    return tuple(rows)


def _two_responses(prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    text, writers = str(prompt), list(WRITERS.values())
    while True:
        first, second = (write(prompt, rng.choice(writers), rng) for _ in range(2))
        if reward(text, first) != reward(text, second):
            return first, second
