"""Numbers on their way into the page's JSON, and into its tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from caldpo.report.statistics import LARGEST

_DIGITS = 7  # significant ones, as many as a float32 has


def plain_number(value: float | None) -> float | None:
    """Round to seven significant digits; None of what JSON has no number for, and of what no figure could hold."""
    if value is None or not math.isfinite(value) or abs(value) > LARGEST:
        return None
    return float(f"{value:.{_DIGITS}g}")


def plain_numbers(values: Iterable[float]) -> list[float | None]:
    """Round each of many; None is a gap."""
    return [plain_number(value) for value in values]


def sortable(value: float | None) -> str:
    """Write a number as JavaScript reads it; empty where there is none, or it is no number."""
    if value is None or math.isnan(value):
        return ""
    return str(value) if math.isfinite(value) else "-Infinity" if value < 0 else "Infinity"


def share_of(total: int, curves: int, least: int, most: int) -> int:
    """Split a number of points among curves, within bounds."""
    return max(least, min(most, total // max(1, curves)))


def limited(rows: Sequence[list[str]], most: int) -> tuple[list[list[str]], int]:
    """Return the first rows, and how many were left out."""
    return list(rows[:most]), max(0, len(rows) - most)
