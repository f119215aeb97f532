"""Divide the pairs of one optimiser step into micro-batches: by count, or by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass of one rank.

    Args:
        rows: rows of the split.
        weights: 1 for each real pair, 0 for filler.
        step_pairs: real pairs of the whole optimiser step, over ranks and accumulation.
    """

    rows: tuple[int, ...]
    weights: tuple[float, ...]
    step_pairs: int


class MicroBatching(Protocol):
    """Divides the rows of an optimiser step into micro-batches."""

    def split(self, rows: Sequence[int], count: int) -> list[list[int]]:
        """Divide the rows into exactly ``count`` micro-batches; some are empty where there are fewer rows."""
        ...


@dataclass(frozen=True)
class ByCount:
    """Micro-batches whose sizes differ by one pair at most.

    Args:
        lengths: tokens of each pair; with these, pairs of similar length share a micro-batch, longest first, which
            saves padding. None keeps the order of the rows.
    """

    lengths: np.ndarray | None = None

    def split(self, rows: Sequence[int], count: int) -> list[list[int]]:
        ordered = list(rows) if self.lengths is None else _longest_first(rows, self.lengths)
        return [ordered[len(rows) * i // count : len(rows) * (i + 1) // count] for i in range(count)]


@dataclass(frozen=True)
class ByTokens:
    """Micro-batches of at most ``budget`` tokens; a longer pair has a micro-batch to itself.

    Micro-batches are ordered by tokens, most first, so that those of neighbouring ranks take similar time.

    Args:
        budget: tokens of a micro-batch, padding included.
        packed: tokens of each pair in a packed row.
        longest: tokens of each pair's longer sequence, prompt included: the length of padded rows.
        layout: which of the two counts.
    """

    budget: int
    packed: np.ndarray
    longest: np.ndarray
    layout: Literal["packed", "padded"]

    def needed(self, rows: Sequence[int]) -> int:
        """Return the number of micro-batches the rows need; with any larger one :meth:`split` keeps the budget too."""
        if self.layout == "padded":
            return len(self._padded(_longest_first(rows, self.longest), self.budget))
        least = max(1, -(-int(np.minimum(self.packed[list(rows)], self.budget).sum()) // self.budget))
        while any(len(batch) > 1 and self.tokens(batch) > self.budget for batch in self.split(rows, least)):
            least += 1
        return least

    def split(self, rows: Sequence[int], count: int) -> list[list[int]]:
        if self.layout == "packed":
            batches = self._least_loaded(_longest_first(rows, self.packed), count)
        else:
            batches = self._evenly_padded(_longest_first(rows, self.longest), count)
        return sorted(batches, key=lambda batch: -self.tokens(batch))

    def tokens(self, batch: Sequence[int]) -> int:
        """Count the tokens of a micro-batch, padding included."""
        if self.layout == "packed":
            return int(self.packed[list(batch)].sum())
        return 2 * len(batch) * max((int(self.longest[row]) for row in batch), default=0)

    def _least_loaded(self, ordered: Sequence[int], count: int) -> list[list[int]]:
        """Put each row, longest first, into the micro-batch with the fewest tokens so far."""
        batches: list[list[int]] = [[] for _ in range(count)]
        loads = np.zeros(count, dtype=np.int64)
        for row in ordered:
            emptiest = int(loads.argmin())
            batches[emptiest].append(row)
            loads[emptiest] += self.packed[row]
        return batches

    def _padded(self, ordered: Sequence[int], limit: int) -> list[list[int]]:
        """Fill padded micro-batches greedily up to ``limit`` tokens: the fewest possible."""
        batches: list[list[int]] = []
        start = 0
        while start < len(ordered):
            fitting = max(1, limit // (2 * int(self.longest[ordered[start]])))
            batches.append(list(ordered[start : start + fitting]))
            start += fitting
        return batches

    def _evenly_padded(self, ordered: Sequence[int], count: int) -> list[list[int]]:
        """Group rows of similar length under the lowest limit that ``count`` micro-batches suffice for."""
        too_low, limit = 0, self.tokens(ordered)
        while limit - too_low > 1:
            middle = (too_low + limit) // 2
            if len(self._padded(ordered, middle)) <= count:
                limit = middle
            else:
                too_low = middle
        batches = self._padded(ordered, limit)
        while len(batches) < count:  # halve the most loaded one that can be halved
            most = max(range(len(batches)), key=lambda i: (len(batches[i]) > 1, self.tokens(batches[i])))
            batch = batches.pop(most)
            half = (len(batch) + 1) // 2
            batches += [batch[:half], batch[half:]]
        return batches


def _longest_first(rows: Sequence[int], lengths: np.ndarray) -> list[int]:
    return sorted(rows, key=lambda row: (-int(lengths[row]), row))
