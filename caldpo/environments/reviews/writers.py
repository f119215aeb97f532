"""Write reviews with writers of different skill, for both the SFT corpus and the preference data.

The preference data comes from a wider pool than the SFT model was fitted to, as preference data in practice
comes from many models: many of its responses are unlikely under the reference.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from caldpo.environments.reviews.review_prompts import Prompt
from caldpo.environments.reviews.vocabulary import (
    ASPECTS,
    COPULA,
    INTENSITY,
    NEGATION,
    POLARITY,
    STOP,
    SUBJECT,
    VERDICT,
)


@dataclass(frozen=True, slots=True)
class Writer:
    """Habits of a writer; all but ``lengths`` are probabilities."""

    lengths: tuple[int, ...]  # numbers of sentences about aspects, drawn uniformly
    on_topic: float  # of a new sentence taking an asked aspect, as long as one is left
    repeats: float  # of a sentence returning to an aspect that was mentioned before
    agrees: float  # of a sentiment with the sign that the tone asks for (otherwise the other sign)
    neutral: float  # of an adjective without polarity
    strong: float  # of polarity 2 rather than 1
    emphasis: float  # of an adverb that strengthens rather than weakens, where there is an adverb
    adverb: float  # of an adverb
    negates: float  # of saying it by negation ("not bad")
    concludes: float  # of a verdict at the end
    slips: float  # of leaving out one word of a sentence


WRITERS: dict[str, Writer] = {
    "weak": Writer(
        lengths=(2, 3, 4),
        on_topic=0.5,
        repeats=0.25,
        agrees=0.45,
        neutral=0.25,
        strong=0.35,
        emphasis=0.5,
        adverb=0.3,
        negates=0.2,
        concludes=0.5,
        slips=0.12,
    ),
    "plain": Writer(
        lengths=(2, 3, 3, 4),
        on_topic=0.95,
        repeats=0.08,
        agrees=0.75,
        neutral=0.25,
        strong=0.3,
        emphasis=0.4,
        adverb=0.35,
        negates=0.2,
        concludes=0.8,
        slips=0.02,
    ),
    "good": Writer(
        lengths=(3, 3, 4),
        on_topic=0.97,
        repeats=0.04,
        agrees=0.8,
        neutral=0.12,
        strong=0.45,
        emphasis=0.6,
        adverb=0.45,
        negates=0.1,
        concludes=0.95,
        slips=0.01,
    ),
    "expert": Writer(
        lengths=(3,),
        on_topic=1.0,
        repeats=0.0,
        agrees=0.97,
        neutral=0.02,
        strong=0.75,
        emphasis=0.9,
        adverb=0.6,
        negates=0.02,
        concludes=1.0,
        slips=0.0,
    ),
}


def write(prompt: Prompt, writer: Writer, rng: random.Random) -> str:
    """Write one review, with a leading space, so that prompt + response is running text."""
    sentences: list[list[str]] = []
    mentioned: list[str] = []
    for _ in range(rng.choice(writer.lengths)):
        aspect = _next_aspect(prompt, mentioned, writer, rng)
        mentioned.append(aspect)
        sentences.append([SUBJECT, aspect, COPULA, *_opinion(prompt.sign, writer, rng)])
    if rng.random() < writer.concludes:
        sentences.append([*VERDICT, COPULA, *_opinion(prompt.sign, writer, rng)])
    for words in sentences:
        if rng.random() < writer.slips:
            del words[rng.randrange(len(words))]
    return "".join(f" {word}" for words in sentences for word in (*words, STOP))


def _next_aspect(prompt: Prompt, mentioned: list[str], writer: Writer, rng: random.Random) -> str:
    if mentioned and rng.random() < writer.repeats:
        return rng.choice(mentioned)
    asked = [aspect for aspect in prompt.aspects if aspect not in mentioned]
    if asked and rng.random() < writer.on_topic:
        return rng.choice(asked)
    return rng.choice([a for a in ASPECTS if a not in mentioned and a not in prompt.aspects])


def _opinion(sign: int, writer: Writer, rng: random.Random) -> list[str]:
    """Choose ``[not] [adverb] adjective`` of the requested sign, as far as the writer manages."""
    if rng.random() >= writer.agrees:
        sign = -sign
    strength = 2 if rng.random() < writer.strong else 1
    polarity = 0 if rng.random() < writer.neutral else sign * strength
    words = []
    if rng.random() < writer.negates:
        words.append(NEGATION)
        polarity = -polarity
    if rng.random() < writer.adverb:
        strengthens = rng.random() < writer.emphasis
        words.append(rng.choice([a for a, factor in INTENSITY.items() if (factor > 1) == strengthens]))
    words.append(rng.choice([a for a, value in POLARITY.items() if value == polarity]))
    return words
