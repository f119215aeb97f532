"""Cache the judge's answers on disk, one line each, so that no question is sent and paid for twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caldpo.evaluation.judge.pair_comparison import JudgeModel, Question, read_verdict
from caldpo.utils.atomic_io import append_text

FILE = "judge_verdicts.jsonl"  # beside the results


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Args:
        answer: the judge's text.
        finish: why it stopped (``stop``, ``length``, ...), if the endpoint reports it.
        prompt_tokens: read by the judge; None where the endpoint does not count.
        completion_tokens: written by it; likewise.
        retries: failed attempts before.
    """

    answer: str
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    retries: int


@dataclass(frozen=True)
class Prices:
    """Prices per million tokens, in whatever currency the endpoint charges; None where unknown.

    Args:
        input: of tokens that the judge reads.
        output: of tokens that it writes.
    """

    input: float | None
    output: float | None


@dataclass(frozen=True)
class Usage:
    """Tokens and cost of some answers.

    Args:
        answers: number of answers.
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

    @classmethod
    def of(cls, answers: Sequence[Answer], prices: Prices) -> Usage:
        """Sum over these answers."""
        prompt = sum(answer.prompt_tokens or 0 for answer in answers)
        completion = sum(answer.completion_tokens or 0 for answer in answers)
        uncounted = sum(answer.prompt_tokens is None or answer.completion_tokens is None for answer in answers)
        cost = None
        if prices.input is not None and prices.output is not None:
            cost = (prompt * prices.input + completion * prices.output) / 1e6
        return cls(len(answers), prompt, completion, uncounted, cost)


class VerdictCache:
    """Answers by the digest of their question, in a file of JSON lines.

    A damaged line (the last one of a command that was killed) is skipped and counted, and its question is asked again.
    Several threads and processes may add answers.

    Args:
        path: created by the first answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self._lock = threading.Lock()
        self._answers: dict[str, Answer] = {}
        content = path.read_bytes() if path.exists() else b""
        for line in content.splitlines():
            self._read(line)

    def __contains__(self, digest: str) -> bool:
        return digest in self._answers

    def __getitem__(self, digest: str) -> Answer:
        return self._answers[digest]

    def get(self, digest: str) -> Answer | None:
        """Return the answer to a question, or None."""
        return self._answers.get(digest)

    def add(self, digest: str, judge: JudgeModel, question: Question, answer: Answer) -> None:
        """Save an answer, in memory and on disk."""
        first, second = question.responses
        record: Mapping[str, Any] = {
            "digest": digest,
            "base_url": judge.base_url,
            "model": judge.model,
            "parameters": dict(judge.parameters),
            "policy_is": "A" if question.policy_first else "B",
            "prompt": question.pair.prompt,
            "A": first,
            "B": second,
            "verdict": read_verdict(answer.answer),
            **asdict(answer),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self._lock:
            append_text(self.path, json.dumps(record) + "\n")
            self._answers[digest] = answer

    def _read(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            answer = Answer(**{f.name: record[f.name] for f in fields(Answer)})
            if not isinstance(answer.answer, str):
                raise TypeError
            self._answers[record["digest"]] = answer
        except (ValueError, KeyError, TypeError, RecursionError):
            self.damaged += bool(line.strip())
