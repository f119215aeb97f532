"""Sample and parse prompts: ``Write a warm review of silent harbor : plot , music , acting .``

Training and held-out prompts are about different titles, so no seed and no size can make them meet;
every single title word still occurs in training.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from caldpo.environments.reviews.vocabulary import ASPECTS, STOP, TITLE_FIRST, TITLE_SECOND, TONES
from caldpo.errors import CaldpoError

Split = Literal["train", "test"]

ASKED_ASPECTS = 3
_HELD_OUT_EVERY = 6
_TITLES = tuple((i + j, f"{a} {b}") for i, a in enumerate(TITLE_FIRST) for j, b in enumerate(TITLE_SECOND))
TITLES: dict[Split, tuple[str, ...]] = {
    "train": tuple(title for diagonal, title in _TITLES if diagonal % _HELD_OUT_EVERY),
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


def sample_prompts(split: Split, count: int, rng: random.Random) -> list[Prompt]:
    """Sample ``count`` different prompts of a split, in random order; refuse more than there are."""
    titles, orders, tones = TITLES[split], list(permutations(ASPECTS, ASKED_ASPECTS)), list(TONES)
    everything = range(len(titles) * len(orders) * len(tones))
    if count > len(everything):
        raise CaldpoError(
            f"the reviews grammar has {len(everything):,} different {split} prompts, fewer than the requested pairs",
            value=count,
            key=f"data.source.{split}_pairs",
            remedy="request fewer pairs: each pair has its own prompt",
        )
    prompts = []
    for number in rng.sample(everything, count):
        rest, tone = divmod(number, len(tones))
        title, order = divmod(rest, len(orders))
        prompts.append(Prompt(titles[title], orders[order], tones[tone]))
    return prompts
