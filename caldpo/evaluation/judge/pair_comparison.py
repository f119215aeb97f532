"""Two responses to a prompt, and the two questions that are asked about them: either response first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from caldpo.data.pair import Message
from caldpo.evaluation.judge.judge_template import fill, readable
from caldpo.evaluation.judge.parse_verdict import Verdict


@dataclass(frozen=True)
class Pair:
    """What is compared.

    Args:
        prompt: as the data has it.
        policy: the policy's response.
        opponent: the one it is compared with.
    """

    prompt: str | Sequence[Message]
    policy: str
    opponent: str

    @property
    def identical(self) -> bool:
        """Whether there is nothing to judge."""
        return self.policy.strip() == self.opponent.strip()

    @property
    def length_difference(self) -> int:
        """Length of the policy's response less that of the other, characters."""
        return len(self.policy.strip()) - len(self.opponent.strip())


@dataclass(frozen=True)
class JudgeModel:
    """Who is asked, and how; other values mean other verdicts.

    Args:
        base_url: of the endpoint, or ``rehearsal``.
        model: its name there.
        parameters: of a chat completion, such as ``temperature``.
    """

    base_url: str
    model: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One order of a pair.

    Args:
        pair: what is compared.
        policy_first: whether the policy's response is shown as A.
        text: what the judge reads.
    """

    pair: Pair
    policy_first: bool
    text: str

    @property
    def shown(self) -> tuple[str, str]:
        """The responses in the order they are shown in."""
        pair = self.pair
        return (pair.policy, pair.opponent) if self.policy_first else (pair.opponent, pair.policy)

    @property
    def messages(self) -> list[dict[str, str]]:
        """Of the chat completion: one turn, as not every model takes a system prompt."""
        return [{"role": "user", "content": self.text}]

    def digest(self, judge: JudgeModel) -> str:
        """Equal for what need not be asked twice."""
        told = [judge.base_url, judge.model, dict(judge.parameters), self.messages]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]

    def score(self, verdict: Verdict) -> float:
        """1 where the policy wins, 1/2 at a tie, 0 where it loses."""
        if verdict == "tie":
            return 0.5
        return float((verdict == "A") == self.policy_first)


def both_orders(pair: Pair, template: Template) -> tuple[Question, Question]:
    """The question with the policy's response first, and the one with it second."""
    prompt, ours, theirs = readable(pair.prompt), pair.policy.strip(), pair.opponent.strip()
    return (
        Question(pair, True, fill(template, prompt, ours, theirs)),
        Question(pair, False, fill(template, prompt, theirs, ours)),
    )
