"""Label a pair of responses by their true rewards (Bradley and Terry, 1952)."""

from __future__ import annotations

import math
import random
from typing import Any


def preference_probability(first: float, second: float, sharpness: float | None) -> float:
    """``P(first > second) = 1 / (1 + exp(-sharpness * (first - second)))``.

    ``sharpness`` is the inverse temperature per unit of reward; None labels without noise (ties are even).
    """
    gap = first - second
    if sharpness is None:
        return 0.5 if gap == 0 else float(gap > 0)
    # tanh saturates where exp would overflow.
    return 0.5 * (1 + math.tanh(0.5 * sharpness * gap))


def prefers_first(first: float, second: float, sharpness: float | None, rng: random.Random) -> bool:
    """Draw a label: whether the response with reward ``first`` is the chosen one."""
    return rng.random() < preference_probability(first, second, sharpness)


def labelled_row(
    prompt: str, first: tuple[str, float], second: tuple[str, float], sharpness: float | None, rng: random.Random
) -> dict[str, Any]:
    """Label two responses with their true rewards, as a row of preference data with the rewards as scores."""
    if not prefers_first(first[1], second[1], sharpness, rng):
        first, second = second, first
    return preference_row(prompt, first, second)


def preference_row(prompt: str, chosen: tuple[str, float], rejected: tuple[str, float]) -> dict[str, Any]:
    """Write a row of preference data from two responses with their scores."""
    texts = {"prompt": prompt, "chosen": chosen[0], "rejected": rejected[0]}
    return {**texts, "score_chosen": chosen[1], "score_rejected": rejected[1]}
