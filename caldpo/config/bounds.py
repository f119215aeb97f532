"""Types with bounds for constructor signatures: the signature is the schema of its yaml.

Kept free of heavy imports, because a bad value has to be answered before torch is imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any


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


Finite = Annotated[float, Bound()]
Positive = Annotated[float, Bound(gt=0)]
NonNegative = Annotated[float, Bound(ge=0)]
Fraction = Annotated[float, Bound(ge=0, le=1)]
PositiveInt = Annotated[int, Bound(gt=0)]
NonNegativeInt = Annotated[int, Bound(ge=0)]

__all__ = ["Any", "Bound", "Finite", "Fraction", "NonNegative", "NonNegativeInt", "Positive", "PositiveInt"]
