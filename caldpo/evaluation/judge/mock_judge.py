"""Answer in a judge's place, to try calls, costs and files of a judged evaluation without an account."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from caldpo.evaluation.judge.pair_comparison import Question, Verdict
from caldpo.evaluation.judge.verdict_cache import Answer

NAME = "mock"  # in place of the endpoint's address and of the model's name


def mock_answer(question: Question, reward: Callable[[str, str], float] | None) -> Answer:
    """Answer by the data's known true reward of (prompt, response).

    Without one, or for a conversation, a coin decides that falls alike for both orders.
    """
    answer = f"This is a mock judge.\n\nVerdict: {_decide(question, reward)}"
    tokens = {"prompt_tokens": len(question.text.split()), "completion_tokens": len(answer.split())}
    return Answer(answer=answer, finish="stop", **tokens)


def _decide(question: Question, reward: Callable[[str, str], float] | None) -> Verdict:
    first, second = question.responses
    prompt = question.pair.prompt
    if reward is None or not isinstance(prompt, str):
        coin = hashlib.sha256("\0".join([str(prompt), *sorted((first, second))]).encode()).digest()[0] % 2
        return "A" if (first < second) == bool(coin) else "B"
    gap = reward(prompt, first) - reward(prompt, second)
    return "tie" if gap == 0 else "A" if gap > 0 else "B"
