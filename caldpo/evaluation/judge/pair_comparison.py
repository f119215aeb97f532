"""Compare two responses to a prompt: the question to the judge in both orders, and the verdict in its answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Literal

from caldpo.data.pair import Message
from caldpo.errors import CaldpoError

Verdict = Literal["A", "B", "tie"]
_VERDICTS: Mapping[str, Verdict] = {"a": "A", "b": "B", "tie": "tie"}

TEMPLATE_KEY = "judge.prompt"
PLACEHOLDERS = ("prompt", "first", "second")
_TEMPLATES = Path(__file__).with_name("templates")

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_BRACKETED = re.compile(r"\[\[\s*(a|b|tie)\s*\]\]", re.IGNORECASE)
_MARKUP = re.compile(r"[*_`#>\[\](){}\"'“”]|</?\w+>")
_CHOICE = r"(?:(?:answer|response|summary|reply|option|assistant|candidate)\s+)?(a|b)(?:\s+(?:is|was)\s+better)?"
_LABEL = (
    r"(?:(?:my|the|final|overall)\s+)*"
    r"(?:verdict|winner|answer|choice|decision|judge?ment|preference|(?:better|preferred)(?:\s+\w+)?)"
)
_NAMED = re.compile(rf"(?:{_CHOICE}|(?:an?\s+|it\s+is\s+an?\s+)?(tie)d?)[\s.!]*", re.IGNORECASE)
_LABELLED = re.compile(rf"{_LABEL}(?:\s+is)?\s*(?:[:=]|\s[-\u2013\u2014]|(?<=\bis))\s*{_NAMED.pattern}", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """The responses of the policy and of its opponent (the reference, or the data) to a prompt."""

    prompt: str | Sequence[Message]
    policy: str
    opponent: str

    @property
    def identical(self) -> bool:
        """Whether both responses are the same text, which needs no judge."""
        return self.policy.strip() == self.opponent.strip()

    @property
    def length_difference(self) -> int:
        """Length of the policy's response minus that of the opponent's, characters."""
        return len(self.policy.strip()) - len(self.opponent.strip())


@dataclass(frozen=True)
class JudgeModel:
    """What verdicts depend on besides the question."""

    base_url: str  # of the endpoint, or "mock"
    model: str
    parameters: Mapping[str, Any]  # of a chat completion, such as temperature


@dataclass(frozen=True)
class Question:
    """One order of a pair: ``policy_first`` shows the policy's response as A; ``text`` is the judge's input."""

    pair: Pair
    policy_first: bool
    text: str

    @property
    def responses(self) -> tuple[str, str]:
        """The responses in their order in the question."""
        pair = self.pair
        return (pair.policy, pair.opponent) if self.policy_first else (pair.opponent, pair.policy)

    @property
    def messages(self) -> list[dict[str, str]]:
        """Messages of the chat completion: one turn, since not every model takes a system prompt."""
        return [{"role": "user", "content": self.text}]

    def digest(self, judge: JudgeModel) -> str:
        """Identify the question to this judge; equal digests need one answer."""
        identity = [judge.base_url, judge.model, dict(judge.parameters), self.messages]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    def score(self, verdict: Verdict) -> float:
        """Return 1 where the policy wins, 1/2 at a tie, 0 where it loses."""
        if verdict == "tie":
            return 0.5
        return float((verdict == "A") == self.policy_first)


@dataclass(frozen=True)
class JudgedPair:
    """A pair with its verdicts."""

    prompt_index: int  # number of its prompt among the prompts
    pair: Pair
    # of both orders; None without a readable verdict; empty for identical responses
    verdicts: tuple[tuple[Question, Verdict | None], ...]

    @property
    def scores(self) -> list[float]:
        """Score of each order with a verdict: 1 won, 1/2 tie, 0 lost."""
        return [question.score(verdict) for question, verdict in self.verdicts if verdict is not None]

    @property
    def score(self) -> float | None:
        """Mean over both orders, 1/2 for identical responses; None where an order is missing: one alone is biased."""
        if not self.verdicts:
            return 0.5
        return sum(self.scores) / 2 if len(self.scores) == 2 else None


def both_orders(pair: Pair, template: Template) -> tuple[Question, Question]:
    """Write the question with the policy's response first, and the one with it second."""
    prompt, policy, opponent = readable(pair.prompt), pair.policy.strip(), pair.opponent.strip()
    return (
        Question(pair, True, template.substitute(prompt=prompt, first=policy, second=opponent)),
        Question(pair, False, template.substitute(prompt=prompt, first=opponent, second=policy)),
    )


# ---- the text of a question


def load_template(name: str) -> Template:
    """Load a template of the project by its name, or from a UTF-8 file, with ``$prompt``, ``$first`` and ``$second``.

    Raises:
        CaldpoError: there is no such template, or its placeholders are not these three.
    """
    own = {path.stem: path for path in sorted(_TEMPLATES.glob("*.txt"))}
    try:
        template = Template(own.get(name, Path(name).expanduser()).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise CaldpoError(
            f"cannot be read: {reason}",
            key=TEMPLATE_KEY,
            value=name,
            remedy=f"choose one of {', '.join(own)}, or name a text file",
        ) from None
    names = template.get_identifiers()
    if not template.is_valid() or set(names) != set(PLACEHOLDERS):
        raise CaldpoError(
            f"must have $prompt, $first and $second, and has {', '.join(f'${name}' for name in names) or 'none'}",
            key=TEMPLATE_KEY,
            value=name,
            remedy="put each where the prompt and the two responses belong; write $$ for a literal dollar sign",
        )
    return template


def readable(prompt: str | Sequence[Message]) -> str:
    """Write a prompt for the judge: text as it is, a conversation as ``User: ...`` and ``Assistant: ...``."""
    if isinstance(prompt, str):
        return prompt.strip()
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content'].strip()}" for turn in prompt)


# ---- the verdict in an answer


def read_verdict(answer: str) -> Verdict | None:
    """Return the verdict of the last line that has one; None where no line has.

    A line has one when it is nothing but ``Verdict: B`` (or winner, answer, choice, ...) or contains ``[[B]]``. As the
    last line, a bare ``B``, ``Answer B`` or ``tie`` is one too; further up it might be the heading of a comparison.
    Case, asterisks, brackets and quotation marks do not matter. Text in ``<think>`` is ignored.
    """
    lines = [line.strip() for line in _THOUGHT.sub("", answer).splitlines() if line.strip()]
    for index, line in enumerate(reversed(lines)):
        if verdict := _verdict_in(line, last=index == 0):
            return verdict
    return None


def _verdict_in(line: str, *, last: bool) -> Verdict | None:
    bracketed = {choice.lower() for choice in _BRACKETED.findall(line)}
    if bracketed:  # two different ones on a line repeat the choices and choose none
        return _VERDICTS[bracketed.pop()] if len(bracketed) == 1 else None
    plain = _MARKUP.sub("", line).strip()
    match = _LABELLED.fullmatch(plain) or (_NAMED.fullmatch(plain) if last else None)
    return _VERDICTS[(match[1] or match[2]).lower()] if match else None
