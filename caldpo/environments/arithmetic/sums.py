"""Sample and parse prompts: ``Add 7 + 15 + 9 + 4 .``

The split of a prompt is a residue of its numbers, so that no seed and no size can make two splits meet.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate

from caldpo.environments.text_environment import Split, require_prompts

COMMAND, PLUS, STOP = "Add", "+", "."
TERMS = (5, 6, 7)
"""Numbers of terms, drawn uniformly."""
SHIFTED_TERMS = (5,)
"""The same of shifted prompts: the shortest sums alone."""
SMALLEST, LARGEST = 2, 11  # terms, drawn uniformly

_SPLITS: tuple[Split, ...] = ("test", "validation", "train", "train", "train", "train", "train", "train")


@dataclass(frozen=True, slots=True)
class Sum:
    """The request to add numbers."""

    terms: tuple[int, ...]

    @property
    def split(self) -> Split:
        """The split it belongs to: three quarters of all sums are for training."""
        return _SPLITS[sum((place + 1) * term for place, term in enumerate(self.terms)) % len(_SPLITS)]

    @property
    def totals(self) -> list[int]:
        """The sums of the first 2, 3, ... terms; the last one answers the prompt."""
        return list(accumulate(self.terms))[1:]

    def __str__(self) -> str:
        return f"{COMMAND} {f' {PLUS} '.join(map(str, self.terms))} {STOP}"


def parse_sum(text: str) -> Sum | None:
    """Parse ``text`` (white space aside) as a prompt of two terms or more; None for any other string."""
    words = text.split()
    numbers = words[1::2]
    if len(numbers) < 2 or not all(number.isdecimal() and number.isascii() for number in numbers):
        return None
    prompt = Sum(tuple(map(int, numbers)))
    return prompt if str(prompt).split() == words else None


def sum_count(split: Split, *, shifted: bool = False) -> int:
    """Count how many different prompts of a split can be drawn without trying long: of each length, half the shortest.

    The residues are about equally frequent.
    """
    lengths = SHIFTED_TERMS if shifted else TERMS
    shortest = (LARGEST - SMALLEST + 1) ** min(lengths) * _SPLITS.count(split) // len(_SPLITS)
    return len(lengths) * (shortest // 2)


def sample_sums(split: Split, count: int, rng: random.Random, *, shifted: bool = False) -> list[Sum]:
    """Sample ``count`` different prompts of a split; refuse more than :func:`sum_count`.

    ``shifted``: shorter sums only.
    """
    require_prompts("arithmetic", split, count, sum_count(split, shifted=shifted))
    found: dict[Sum, None] = {}
    while len(found) < count:
        length = rng.choice(SHIFTED_TERMS if shifted else TERMS)
        candidate = Sum(tuple(rng.randint(SMALLEST, LARGEST) for _ in range(length)))
        if candidate.split == split:
            found[candidate] = None
    return list(found)
