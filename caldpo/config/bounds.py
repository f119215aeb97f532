"""Pydantic types of the values in constructor signatures, which are the schemas of the yamls. No heavy imports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Finite = Annotated[float, Field(allow_inf_nan=False, description="a finite number")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NonPositive = Annotated[float, Field(le=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]  # probability of an event that must not be certain
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]  # of a whole, neither nothing nor all
PositiveFraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]  # of a whole, up to all of it
FlipRate = Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]  # probability that a label is wrong
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Port = Annotated[int, Field(ge=0, le=65535, description="a port, or 0 for any that is free")]
FolderName = Annotated[
    str,
    Field(
        pattern=r"\A(?!.*\.\.)[A-Za-z0-9=_,+][A-Za-z0-9=_,+.-]*\Z",
        description="a folder name of letters, digits and = _ , + - . (no slash, no two dots in a row)",
    ),
]
