"""Types with bounds for constructor signatures: the signature is the schema of its yaml.

Kept free of heavy imports, because a bad value has to be answered before torch is imported.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bound:
    """An interval for a finite number; None leaves a side open."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def holds(self, value: float) -> bool:
        """Whether ``value`` is finite and inside the interval."""
        return (
            math.isfinite(value)
            and (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        words = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
        sides = [f"{w} {v:g}" for n, w in words.items() if (v := getattr(self, n)) is not None]
        return " and ".join(sides) or "finite"


@dataclass(frozen=True)
class Pattern:
    """A regular expression that the whole text has to match, and its meaning in words."""

    regex: str
    words: str

    def holds(self, value: str) -> bool:
        """Whether ``value`` matches from its first to its last character."""
        return re.fullmatch(self.regex, value) is not None

    def __str__(self) -> str:
        return self.words


Finite = Annotated[float, Bound()]
Positive = Annotated[float, Bound(gt=0)]
NonNegative = Annotated[float, Bound(ge=0)]
NonPositive = Annotated[float, Bound(le=0)]
Fraction = Annotated[float, Bound(ge=0, le=1)]
Rate = Annotated[float, Bound(ge=0, lt=1)]  # probability of an event that must not be certain
Share = Annotated[float, Bound(gt=0, lt=1)]  # of a whole, neither nothing nor all
FlipRate = Annotated[float, Bound(ge=0, lt=0.5)]  # probability that a label is wrong
PositiveInt = Annotated[int, Bound(gt=0)]
NonNegativeInt = Annotated[int, Bound(ge=0)]
FolderName = Annotated[
    str,
    Pattern(
        r"(?!.*\.\.)[A-Za-z0-9=_,+][A-Za-z0-9=_,+.-]*",
        "a folder name of letters, digits and = _ , + - . (no slash, no two dots in a row)",
    ),
]
