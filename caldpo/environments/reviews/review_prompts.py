"""Sample and parse prompts: ``Write a warm review of silent harbor : plot , music , acting .``

Prompts of different splits are about different titles, so no seed and no size can make them meet;
every single title word still occurs in training. Titles of the validation split have their words in the other order
(``harbor silent``): the other titles were all given to training and test before there was a third split.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from caldpo.environments.reviews.vocabulary import ASPECTS, STOP, TITLE_FIRST, TITLE_SECOND, TONES
from caldpo.environments.text_environment import Split, require_prompts

ASKED_ASPECTS = 3
_HELD_OUT_EVERY = 6
_PRAISE_PER_CRITICISM = 9  # of shifted prompts
_TITLES = tuple((i + j, f"{a} {b}") for i, a in enumerate(TITLE_FIRST) for j, b in enumerate(TITLE_SECOND))
TITLES: dict[Split, tuple[str, ...]] = {
    "train": tuple(title for diagonal, title in _TITLES if diagonal % _HELD_OUT_EVERY),
    "validation": tuple(f"{b} {a}" for a in TITLE_FIRST for b in TITLE_SECOND),
    "test": tuple(title for diagonal, title in _TITLES if diagonal % _HELD_OUT_EVERY == 0),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """The request for a review."""

    title: str  # two words; irrelevant for the reward
    aspects: tuple[str, ...]  # the three asked for
    tone: str  # a key of TONES

    @property
    def sign(self) -> int:
        """+1 where praise is asked for, -1 where criticism is."""
        return TONES[self.tone]

    def __str__(self) -> str:
        return f"Write a {self.tone} review of {self.title} : {' , '.join(self.aspects)} {STOP}"


def parse_prompt(text: str) -> Prompt | None:
    """Parse ``text`` (white space aside) as a prompt; None for any other string."""
    words = text.split()
    if len(words) != 8 + 2 * ASKED_ASPECTS or words[2] not in TONES:
        return None
    prompt = Prompt(title=" ".join(words[5:7]), aspects=tuple(words[8::2]), tone=words[2])
    known = set(prompt.aspects) <= set(ASPECTS) and len(set(prompt.aspects)) == ASKED_ASPECTS
    return prompt if known and str(prompt).split() == words else None


def prompt_count(split: Split, *, shifted: bool = False) -> int:
    """Count the different prompts of a split."""
    return len(_numbers(split, shifted))


def sample_prompts(split: Split, count: int, rng: random.Random, *, shifted: bool = False) -> list[Prompt]:
    """Sample ``count`` different prompts of a split, in random order; refuse more than there are.

    ``shifted``: one prompt in ten asks for criticism, where otherwise every second one does.
    """
    titles, orders, tones = TITLES[split], list(permutations(ASPECTS, ASKED_ASPECTS)), list(TONES)
    everything = _numbers(split, shifted)
    require_prompts("reviews", split, count, len(everything))
    prompts = []
    for number in rng.sample(everything, count):
        rest, tone = divmod(number, len(tones))
        title, order = divmod(rest, len(orders))
        prompts.append(Prompt(titles[title], orders[order], tones[tone]))
    return prompts


def _numbers(split: Split, shifted: bool) -> Sequence[int]:
    """Number the prompts of a split; the tone is the last digit, so to say."""
    signs = list(TONES.values())
    everything = range(len(TITLES[split]) * len(list(permutations(ASPECTS, ASKED_ASPECTS))) * len(signs))
    if not shifted:
        return everything
    # all that ask for praise, and of the as many others every ninth
    return [n for n in everything if signs[n % len(signs)] > 0 or n // len(signs) % _PRAISE_PER_CRITICISM == 0]
