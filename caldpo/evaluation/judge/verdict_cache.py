"""Verdicts on disk: a line each, written as it arrives, so that nothing is asked and paid for twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from caldpo.evaluation.judge.pair_comparison import JudgeModel, Question
from caldpo.evaluation.judge.parse_verdict import read_verdict
from caldpo.utils.atomic_io import append_text

FILE = "judge_verdicts.jsonl"  # beside the results


@dataclass(frozen=True)
class Answer:
    """What came back for one question.

    Args:
        answer: the judge's words.
        finish: why it stopped (``stop``, ``length``, ...), where the endpoint says so.
        prompt_tokens: read by the judge; None where the endpoint does not count.
        completion_tokens: written by it; likewise.
        retries: attempts before the one that succeeded.
    """

    answer: str
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    retries: int


class Ledger:
    """The answers in a file of JSON lines, by the digest of their question.

    A line that cannot be read (the last one of a command that was killed) is skipped and counted; its question is asked
    again. Answers may be added from several threads and processes.

    Args:
        path: need not exist.
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
        """The answer to a question, or None."""
        return self._answers.get(digest)

    def add(self, digest: str, judge: JudgeModel, question: Question, answer: Answer) -> None:
        """Keep an answer, in memory and on disk."""
        first, second = question.shown
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
