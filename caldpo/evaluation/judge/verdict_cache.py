"""Cache the judge's answers on disk, one line each, so that no question is sent and paid for twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, WrapValidator

from caldpo.evaluation.judge.pair_comparison import JudgeModel, Question, read_verdict
from caldpo.utils.atomic_io import append_text

FILE = "judge_verdicts.jsonl"  # beside the results


def _none_if_invalid(value: Any, validate: Callable[[Any], Any]) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


ValidText = Annotated[str | None, WrapValidator(_none_if_invalid)]
TokenCount = Annotated[
    Annotated[int, Field(strict=True, ge=0, lt=2**53)] | None,  # larger ones are not believed
    WrapValidator(_none_if_invalid),
]


class Answer(BaseModel):
    """The answer to one question; None where the endpoint does not report a count, or why the judge stopped.

    ``finish`` is ``stop``, ``length``, ...; ``retries`` are the failed attempts before.
    """

    answer: str
    finish: ValidText = None
    prompt_tokens: TokenCount = None
    completion_tokens: TokenCount = None
    retries: int = 0


class _Line(Answer):
    digest: str


@dataclass(frozen=True)
class Usage:
    """Sums over some answers; those that the endpoint did not count tokens of are ``uncounted``, and in no other sum.

    The cost is in the currency of the prices; None without prices.
    """

    answers: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    cost: float | None

    @classmethod
    def of(cls, answers: Sequence[Answer], prices: tuple[float, float] | None) -> Usage:
        """Sum over these answers; ``prices`` are per million tokens read and written."""
        prompt = sum(answer.prompt_tokens or 0 for answer in answers)
        completion = sum(answer.completion_tokens or 0 for answer in answers)
        uncounted = sum(answer.prompt_tokens is None or answer.completion_tokens is None for answer in answers)
        cost = None if prices is None else (prompt * prices[0] + completion * prices[1]) / 1e6
        return cls(len(answers), prompt, completion, uncounted, cost)


class VerdictCache:
    """Answers by the digest of their question, in a file of JSON lines.

    A damaged line (the last one of a command that was killed) is skipped and counted, and its question is asked again.
    Several threads and processes may add answers, which come from ``judge``.
    """

    def __init__(self, path: Path, judge: JudgeModel) -> None:
        self.path, self.judge = path, judge
        self.answers: dict[str, Answer] = {}
        self.damaged = 0
        self._lock = threading.Lock()
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                answer = _Line.model_validate(json.loads(line))
                self.answers[answer.digest] = answer
            except (ValueError, RecursionError):
                self.damaged += bool(line.strip())

    def add(self, digest: str, question: Question, answer: Answer) -> None:
        """Save an answer, in memory and on disk."""
        first, second = question.responses
        record = {
            "digest": digest,
            "base_url": self.judge.base_url,
            "model": self.judge.model,
            "parameters": dict(self.judge.parameters),
            "policy_is": "A" if question.policy_first else "B",
            "prompt": question.pair.prompt,
            "A": first,
            "B": second,
            "verdict": read_verdict(answer.answer),
            **answer.model_dump(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self._lock:
            append_text(self.path, json.dumps(record) + "\n")
            self.answers[digest] = answer
