"""Reading a verdict out of what a judge wrote."""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["A", "B", "tie"]

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


def read_verdict(answer: str) -> Verdict | None:
    """The verdict of the last line that gives one; None where no line does.

    A line gives one when it is nothing but ``Verdict: B`` (or winner, answer, choice, ...) or holds ``[[B]]``. As the
    last line, a bare ``B``, ``Answer B`` or ``tie`` is one too; further up it might be the heading of a comparison.
    Case, asterisks, brackets and quotation marks do not matter. What a model wrote as its thought is not looked at.
    """
    lines = [line.strip() for line in _THOUGHT.sub("", answer).splitlines() if line.strip()]
    for place, line in enumerate(reversed(lines)):
        if found := _of_line(line, last=place == 0):
            return found
    return None


def _of_line(line: str, *, last: bool) -> Verdict | None:
    bracketed = {found.lower() for found in _BRACKETED.findall(line)}
    if bracketed:  # two different ones on a line repeat the choices and choose none
        return _named(bracketed.pop()) if len(bracketed) == 1 else None
    plain = _MARKUP.sub("", line).strip()
    match = _LABELLED.fullmatch(plain) or (_NAMED.fullmatch(plain) if last else None)
    return _named(match[1] or match[2]) if match else None


def _named(text: str) -> Verdict:
    return "tie" if text.lower() == "tie" else "A" if text.lower() == "a" else "B"
