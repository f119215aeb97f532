"""Write chains of partial sums: `` 7 + 15 = 22 . 22 + 9 = 31 . 31 + 4 = 35 . answer 35 .``

A slip is one wrong number: the result of one step or the answer. All else is as in the correct chain, which the next
step goes on with, so that a chain and its slip share every other token, as in the short edits of Pal et al. 2024
(arXiv 2402.13228).
"""

from __future__ import annotations

import random

from caldpo.environments.arithmetic.sums import PLUS, STOP, Sum

EQUALS, ANSWER = "=", "answer"
SLIPS = (-10, -2, -1, 1, 2, 10)
"""By how much a slip is wrong, drawn uniformly: near misses and a wrong tens digit."""


def steps(prompt: Sum) -> list[list[str]]:
    """Return the words of each step of the correct chain, and of the answer, without full stops."""
    totals = prompt.totals
    before = [prompt.terms[0], *totals]
    parts = zip(before, prompt.terms[1:], totals, strict=False)
    written = [[str(a), PLUS, str(b), EQUALS, str(c)] for a, b, c in parts]
    return [*written, [ANSWER, str(totals[-1])]]


def correct_chain(prompt: Sum) -> str:
    """Write the correct chain, with a leading space, so that prompt + response is running text."""
    return _text(steps(prompt))


def slipped_chain(prompt: Sum, rng: random.Random) -> str:
    """Write the correct chain but for one slip, at a place drawn uniformly from steps and answer."""
    sentences = steps(prompt)
    sentence = rng.choice(sentences)
    right = int(sentence[-1])
    sentence[-1] = str(right + rng.choice([slip for slip in SLIPS if right + slip > 0]))
    return _text(sentences)


def _text(sentences: list[list[str]]) -> str:
    return "".join(f" {word}" for words in sentences for word in (*words, STOP))
