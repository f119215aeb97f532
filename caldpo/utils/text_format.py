"""Format numbers as text."""

from __future__ import annotations

import math

_MOST_DECIMALS = 6
SMALLEST, LARGEST = 1e-5, 1e9  # beyond these, powers of ten


def number(value: float) -> str:
    """Format with three significant digits: ``-0.0123``, ``12.3``, ``1230``, ``1.20e-08``."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{value}"
    if value != 0 and not SMALLEST <= abs(value) < LARGEST:
        return f"{value:.2e}"
    return f"{value:.{decimals(value, 3)}f}"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun: ``1 pair``, ``2,000 pairs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def with_interval(value: float, low: float, high: float) -> str:
    """Format as ``0.859 [0.816, 0.898]``: as many decimals as two digits of the interval's width need.

    An interval without a width (``0.500 [0.500, 0.500]``) gives no scale; three digits of the value do. Numbers too
    small for decimals are shown in powers of ten (``2.00e-07 [1.00e-07, 3.00e-07]``).
    """
    size = max(map(abs, (value, low, high)))
    if not all(map(math.isfinite, (value, high - low))) or abs(value) >= LARGEST or 0 < size < SMALLEST:
        return f"{number(value)} [{number(low)}, {number(high)}]"
    digits = decimals(high - low, 2) if high != low else decimals(value, 3)
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def decimals(value: float, significant: int) -> int:
    """Count the decimals that show ``significant`` digits of a value; at most six."""
    if value == 0:
        return 0
    return min(_MOST_DECIMALS, max(0, significant - 1 - math.floor(math.log10(abs(value)))))
