"""What judging took: calls, tokens and money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caldpo.evaluation.judge.verdict_cache import Answer


@dataclass(frozen=True)
class Prices:
    """Per million tokens, in whatever currency the endpoint charges; None where it is not known.

    Args:
        input: of tokens that the judge reads.
        output: of tokens that it writes.
    """

    input: float | None
    output: float | None


@dataclass(frozen=True)
class Usage:
    """Tokens of some answers.

    Args:
        answers: how many they are.
        prompt_tokens: read by the judge.
        completion_tokens: written by it.
        uncounted: answers whose tokens the endpoint did not count; they are not in the sums.
        cost: of the counted ones, in the currency of the prices; None without prices.
    """

    answers: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    cost: float | None


def usage_of(answers: Sequence[Answer], prices: Prices) -> Usage:
    """Sums over these answers."""
    read = sum(answer.prompt_tokens or 0 for answer in answers)
    written = sum(answer.completion_tokens or 0 for answer in answers)
    uncounted = sum(answer.prompt_tokens is None or answer.completion_tokens is None for answer in answers)
    cost = None
    if prices.input is not None and prices.output is not None:
        cost = (read * prices.input + written * prices.output) / 1e6
    return Usage(len(answers), read, written, uncounted, cost)
