"""A logged metric over optimiser steps."""

from __future__ import annotations

from array import array
from collections.abc import ItemsView, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

LAST_STEP = 2**53  # beyond it floats, in which figures are drawn, are no whole numbers any more


class LoggedCurve(Mapping[int, float]):
    """Optimiser step -> value, by rising steps, in two arrays: a dict takes six times the memory."""

    __slots__ = ("numbers", "steps")

    def __init__(self, steps: NDArray[np.int64], numbers: NDArray[np.float64]) -> None:
        """``steps`` rise strictly; both of shape ``(steps,)``."""
        self.steps = steps
        self.numbers = numbers

    @classmethod
    def of_rows(cls, steps: array[int], numbers: array[float]) -> LoggedCurve:
        """Make a curve of what rows hold, in their order; of a step logged twice the last value counts."""
        rows, values = np.array(steps, dtype=np.int64), np.array(numbers, dtype=np.float64)
        if (np.diff(rows) > 0).all():
            return cls(rows, values)
        rising, from_end = np.unique(rows[::-1], return_index=True)
        return cls(rising, values[::-1][from_end])

    def __getitem__(self, step: int) -> float:
        place = int(np.searchsorted(self.steps, step))
        if place == len(self.steps) or self.steps[place] != step:
            raise KeyError(step)
        return float(self.numbers[place])

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps.tolist())

    def __len__(self) -> int:
        return len(self.steps)

    def items(self) -> ItemsView[int, float]:
        """Steps and values, as of a dict."""
        return dict(zip(self.steps.tolist(), self.numbers.tolist(), strict=True)).items()

    @property
    def last_step(self) -> int:
        """The last step; a curve has one."""
        return int(self.steps[-1])

    @property
    def last(self) -> float:
        """The value at the last step."""
        return float(self.numbers[-1])

    def times(self, factor: float) -> LoggedCurve:
        """The same steps, every value multiplied."""
        return LoggedCurve(self.steps, self.numbers * factor)
