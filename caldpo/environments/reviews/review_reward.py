"""Compute the ground-truth reward of a review, a sum that can be checked by hand.

::

    reward = (sign * (sentiment of the asked aspects + 1.5 * sentiment of the verdict)
              - 1 * repeated - 1 * off-topic - 2 * malformed  -  CENTRE) / SCALE

* ``sign``: +1 where the prompt's tone asks for praise, -1 where it asks for criticism.
* sentiment of ``the plot is [not] [adverb] <adjective> .``: polarity of the adjective (-2..2) times the
  adverb's intensity, times -1/2 after ``not``. Only the first mention of an aspect counts.
* the verdict is ``overall it is [not] [adverb] <adjective> .``; again only the first one counts.
* repeated: mentions after the first, verdicts too; off-topic: aspects the prompt does not ask for;
  malformed: sentences that are neither, among them an unfinished last one and an empty review.
  At most four of each are counted, which bounds the reward.
* an asked aspect that is missing earns nothing, and so does a missing verdict.

``CENTRE`` and ``SCALE`` make mean and variance about 0 and 1 over the responses of the preference data.
"""

from __future__ import annotations

from dataclasses import dataclass

from caldpo.environments.reviews.review_prompts import parse_prompt
from caldpo.environments.reviews.vocabulary import (
    ASPECTS,
    COPULA,
    INTENSITY,
    NEGATION,
    NEGATION_FACTOR,
    POLARITY,
    STOP,
    SUBJECT,
    VERDICT,
)

VERDICT_WEIGHT = 1.5
REPEATED_COST = 1.0
OFF_TOPIC_COST = 1.0
MALFORMED_COST = 2.0
MOST_FAULTS = 4
CENTRE = 2.4
SCALE = 4.7

VERDICT_SUBJECT = "overall"


@dataclass(frozen=True, slots=True)
class Clause:
    """One well-formed sentence: its subject (an aspect or :data:`VERDICT_SUBJECT`) and sentiment."""

    subject: str
    sentiment: float


def reward(prompt: str, response: str) -> float:
    """Return the ground-truth reward of ``response``, in standard deviations of the preference data's responses.

    Defined for any two strings: a prompt of another kind asks for no aspect and has no sign, so that only the
    costs remain.
    """
    asked = parse_prompt(prompt)
    sign, aspects = (asked.sign, asked.aspects) if asked else (0, ())
    sentences = [parse_sentence(words) for words in _sentences(response)]

    first: dict[str, float] = {}
    repeated = malformed = 0
    for clause in sentences:
        if clause is None:
            malformed += 1
        elif clause.subject in first:
            repeated += 1
        else:
            first[clause.subject] = clause.sentiment
    verdict = first.pop(VERDICT_SUBJECT, 0.0)
    off_topic = sum(aspect not in aspects for aspect in first)
    sentiment = sum(value for aspect, value in first.items() if aspect in aspects)

    raw = (
        sign * (sentiment + VERDICT_WEIGHT * verdict)
        - REPEATED_COST * min(repeated, MOST_FAULTS)
        - OFF_TOPIC_COST * min(off_topic, MOST_FAULTS)
        - MALFORMED_COST * min(malformed, MOST_FAULTS)
    )
    return (raw - CENTRE) / SCALE


def parse_sentence(words: list[str]) -> Clause | None:
    """Parse a sentence without its full stop; None for one outside the grammar."""
    match words:
        case [first, aspect, verb, *rest] if first == SUBJECT and aspect in ASPECTS and verb == COPULA:
            subject = aspect
        case [first, second, verb, *rest] if (first, second) == VERDICT and verb == COPULA:
            subject = VERDICT_SUBJECT
        case _:
            return None
    factor = 1.0
    if rest and rest[0] == NEGATION:
        factor, rest = NEGATION_FACTOR, rest[1:]
    if rest and rest[0] in INTENSITY:
        factor, rest = factor * INTENSITY[rest[0]], rest[1:]
    if len(rest) != 1 or rest[0] not in POLARITY:
        return None
    return Clause(subject, factor * POLARITY[rest[0]])


def _sentences(response: str) -> list[list[str]]:
    """Split words at full stops; the rest after the last one is a sentence too (malformed: see below)."""
    sentences: list[list[str]] = [[]]
    for word in response.split():
        if word == STOP:
            sentences.append([])
        else:
            sentences[-1].append(word)
    unfinished = sentences.pop()
    # Words without a full stop, or no word at all: an empty sentence parses as malformed.
    return [*sentences, []] if unfinished or not sentences else sentences
