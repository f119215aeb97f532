"""How the pairs of one optimiser step are dealt into micro-batches: by count, or by the tokens they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np


class Dealing(Protocol):
    """Deals the rows of a step into micro-batches."""

    def deal(self, rows: Sequence[int], batches: int) -> list[list[int]]:
        """The rows in exactly so many micro-batches; some are empty where there are fewer rows than that."""
        ...


@dataclass(frozen=True)
class ByCount:
    """Micro-batches whose sizes differ by one pair at most.

    Args:
        lengths: tokens of each pair; with these, pairs of like length come together, longest first, so that padding
            them wastes less. None keeps the rows' own order.
    """

    lengths: np.ndarray | None = None

    def deal(self, rows: Sequence[int], batches: int) -> list[list[int]]:
        ordered = list(rows) if self.lengths is None else _longest_first(rows, self.lengths)
        return [ordered[len(rows) * i // batches : len(rows) * (i + 1) // batches] for i in range(batches)]


@dataclass(frozen=True)
class ByTokens:
    """Micro-batches of at most ``budget`` tokens; a pair that is longer than that has one to itself.

    Micro-batches come in the order of their tokens, most first, so that those of ranks beside each other match.

    Args:
        budget: tokens of a micro-batch, padding included.
        packed: tokens of each pair in a packed row.
        longest: tokens of each pair's longer sequence, prompt included: what padded rows are as long as.
        layout: which of the two counts.
    """

    budget: int
    packed: np.ndarray
    longest: np.ndarray
    layout: Literal["packed", "padded"]

    def needed(self, rows: Sequence[int]) -> int:
        """Micro-batches that the rows need; in any larger number :meth:`deal` keeps the budget as well."""
        if self.layout == "padded":
            return len(self._neighbours(_longest_first(rows, self.longest), self.budget))
        least = max(1, -(-int(np.minimum(self.packed[list(rows)], self.budget).sum()) // self.budget))
        while any(len(batch) > 1 and self.tokens(batch) > self.budget for batch in self.deal(rows, least)):
            least += 1
        return least

    def deal(self, rows: Sequence[int], batches: int) -> list[list[int]]:
        if self.layout == "packed":
            dealt = self._to_the_emptiest(_longest_first(rows, self.packed), batches)
        else:
            dealt = self._evenly(_longest_first(rows, self.longest), batches)
        return sorted(dealt, key=lambda batch: -self.tokens(batch))

    def tokens(self, batch: Sequence[int]) -> int:
        """Tokens that go through the model for a micro-batch."""
        if self.layout == "packed":
            return int(self.packed[list(batch)].sum())
        return 2 * len(batch) * max((int(self.longest[row]) for row in batch), default=0)

    def _to_the_emptiest(self, ordered: Sequence[int], batches: int) -> list[list[int]]:
        """Each row, longest first, to the micro-batch that has least so far."""
        dealt: list[list[int]] = [[] for _ in range(batches)]
        loads = np.zeros(batches, dtype=np.int64)
        for row in ordered:
            emptiest = int(loads.argmin())
            dealt[emptiest].append(row)
            loads[emptiest] += self.packed[row]
        return dealt

    def _neighbours(self, ordered: Sequence[int], most: int) -> list[list[int]]:
        """Padded micro-batches of at most ``most`` tokens, as few as can be: each takes as many rows as it may."""
        dealt: list[list[int]] = []
        start = 0
        while start < len(ordered):
            fitting = max(1, most // (2 * int(self.longest[ordered[start]])))
            dealt.append(list(ordered[start : start + fitting]))
            start += fitting
        return dealt

    def _evenly(self, ordered: Sequence[int], batches: int) -> list[list[int]]:
        """Neighbours in length together, under the lowest limit for which there are micro-batches enough."""
        too_low, limit = 0, self.tokens(ordered)
        while limit - too_low > 1:
            middle = (too_low + limit) // 2
            if len(self._neighbours(ordered, middle)) <= batches:
                limit = middle
            else:
                too_low = middle
        dealt = self._neighbours(ordered, limit)
        while len(dealt) < batches:  # halve the most loaded of those that can be halved
            most = max(range(len(dealt)), key=lambda i: (len(dealt[i]) > 1, self.tokens(dealt[i])))
            batch = dealt.pop(most)
            half = (len(batch) + 1) // 2
            dealt += [batch[:half], batch[half:]]
        return dealt


def _longest_first(rows: Sequence[int], lengths: np.ndarray) -> list[int]:
    return sorted(rows, key=lambda row: (-int(lengths[row]), row))
