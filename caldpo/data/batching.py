"""Cut epochs into optimiser steps, and steps into micro-batches for the ranks.

The pairs of an optimiser step depend on the seed, the epoch and the step size alone, not on how ranks and micro-batches
share the step: 2 devices x 4 pairs x accumulation 2 see the pairs of 1 device x 16 pairs, whatever the token budget.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from caldpo.data.collate import Layout
from caldpo.errors import CaldpoError
from caldpo.utils.text_format import counted

STEPS_EXAMINED = 1000
"""Optimiser steps of most tokens, which decide how many micro-batches each step of a run has: half a second at most."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass of one rank."""

    rows: tuple[int, ...]  # of the split
    weights: tuple[float, ...]  # 1 for each real pair, 0 for filler
    step_pairs: int  # real pairs of the whole optimiser step, over ranks and accumulation
    places: tuple[int, ...] = ()  # of the rows in the step, where the loss reads all of it
    others: tuple[int, ...] = ()  # the step's next row for each, where the loss reads mismatched responses


@dataclass(frozen=True)
class ByCount:
    """Micro-batches whose sizes differ by one pair at most.

    With ``lengths``, the tokens of each pair, pairs of similar length share a micro-batch, longest first, which saves
    padding. Without, rows stay in order.
    """

    lengths: np.ndarray | None = None

    def split(self, rows: Sequence[int], count: int) -> list[list[int]]:
        """Divide the rows into exactly ``count`` micro-batches; some are empty where there are fewer rows."""
        ordered = list(rows) if self.lengths is None else _longest_first(rows, self.lengths)
        return [ordered[len(rows) * i // count : len(rows) * (i + 1) // count] for i in range(count)]


@dataclass(frozen=True)
class ByTokens:
    """Micro-batches of at most ``budget`` tokens; a longer pair has a micro-batch to itself.

    Micro-batches are ordered by tokens, most first, so that those of neighbouring ranks take similar time.
    """

    budget: int  # tokens of a micro-batch, padding included
    packed: np.ndarray  # tokens of each pair in a packed row
    longest: np.ndarray  # tokens of each pair's longer sequence, prompt included: the length of padded rows
    layout: Layout  # which of the two counts
    fewest: bool = False  # use no more micro-batches of a step than it needs; else its pairs are spread over all

    @classmethod
    def of(cls, budget: int, lengths: np.ndarray, layout: Layout, *, fewest: bool = False) -> ByTokens:
        """Count tokens by ``lengths``: those of prompt, chosen and rejected response of each pair, ``(pairs, 3)``."""
        longest = lengths[:, 0] + lengths[:, 1:].max(axis=1)
        return cls(budget, lengths.sum(axis=1), longest, layout, fewest)

    def needed(self, rows: Sequence[int]) -> int:
        """Return the number of micro-batches the rows need; with any larger one :meth:`split` keeps the budget too."""
        if self.layout == "padded":
            return len(self._padded(_longest_first(rows, self.longest), self.budget))
        ordered = _longest_first(rows, self.packed)

        def too_few(count: int) -> bool:
            batches = self._least_loaded(ordered, count)
            return any(len(batch) > 1 and self.tokens(batch) > self.budget for batch in batches)

        least = enough = max(1, -(-int(np.minimum(self.packed[list(rows)], self.budget).sum()) // self.budget))
        stride = 1
        while too_few(enough):
            least, enough, stride = enough + 1, enough + stride, 2 * stride
        return least + bisect_left(range(least, enough), True, key=lambda count: not too_few(count))

    def split(self, rows: Sequence[int], count: int) -> list[list[int]]:
        used = min(count, self.needed(rows)) if self.fewest else count
        if self.layout == "packed":
            batches = self._least_loaded(_longest_first(rows, self.packed), used)
        else:
            batches = self._evenly_padded(_longest_first(rows, self.longest), used)
        return sorted(batches, key=lambda batch: -self.tokens(batch)) + [[] for _ in range(count - used)]

    def in_order(self, rows: Sequence[int], most_pairs: int) -> Iterator[list[int]]:
        """Divide the rows, in order, into micro-batches within the budget, of at most ``most_pairs`` pairs."""
        batch: list[int] = []
        for row in rows:
            if batch and (len(batch) == most_pairs or self.tokens([*batch, row]) > self.budget):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def tokens(self, batch: Sequence[int]) -> int:
        """Count the tokens of a micro-batch, padding included."""
        if self.layout == "packed":
            return int(self.packed[list(batch)].sum())
        return 2 * len(batch) * max((int(self.longest[row]) for row in batch), default=0)

    def longer_pairs(self) -> int:
        """Count the pairs that exceed the budget on their own."""
        return int((self.alone() > self.budget).sum())

    def alone(self) -> np.ndarray:
        """Tokens of each pair in a micro-batch of its own."""
        return self.packed if self.layout == "packed" else 2 * self.longest

    def most_tokens(self, pairs: int) -> int:
        """Count the tokens of the longest ``pairs`` pairs in one micro-batch."""
        lengths = self.packed if self.layout == "packed" else self.longest
        return self.tokens(lengths.argsort()[::-1][:pairs].tolist())

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


@dataclass
class StepPlan:
    """The optimiser steps of a run, the same on all ranks.

    Each step but the last of an epoch has ``step_size`` pairs, the last what remains.

    Raises:
        CaldpoError: ``drop_last`` with fewer pairs than one step has.
    """

    pairs: int  # of the split
    micro_batch_size: int  # pairs of a micro-batch where they are divided by count
    accumulation: int = 1  # micro-batches of one device in each step
    world_size: int = 1  # devices
    seed: int | None = None  # with the epoch, determines the order; None keeps the order of the split
    drop_last: bool = False  # leave out the last step of an epoch where it has fewer pairs than the others
    max_epochs: float = 1  # passes over the pairs, where there is no max_steps; a part of one is rounded up to a step
    max_steps: int | None = None
    micro_batching: ByCount | ByTokens = ByCount()
    step_size: int = 0  # pairs of a full optimiser step, over all devices; 0: those of full micro-batches
    reads_ahead: bool = False  # whether a step's first micro-batch brings the others, for a loss that reads all pairs
    mismatched: bool = False  # whether it reads other prompts' responses as well

    def __post_init__(self) -> None:
        self.step_size = self.step_size or self.micro_batch_size * self.accumulation * self.world_size
        if self.drop_last and self.dropped == self.pairs:
            raise CaldpoError(
                f"leaves nothing: {counted(self.pairs, 'pair')}, fewer than the {self.step_size} of one optimiser step",
                key="data.drop_last",
                value=self.drop_last,
                remedy="set data.drop_last=false, or lower data.micro_batch_size or the accumulation",
            )

    @property
    def dropped(self) -> int:
        """Pairs left out of each epoch."""
        return self.pairs % self.step_size if self.drop_last else 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch, a smaller last one included where it is not dropped."""
        return -(-(self.pairs - self.dropped) // self.step_size)

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        if self.max_steps is not None:
            return self.max_steps
        return math.ceil(Fraction(str(self.max_epochs)) * self.steps_per_epoch)  # of the decimal that was written

    @property
    def epochs(self) -> int:
        """Epochs that the run begins."""
        return -(-self.steps // self.steps_per_epoch)

    @property
    def pairs_seen(self) -> int:
        """Training pairs of all steps, repeats counted."""
        per_epoch = self.pairs - self.dropped
        epochs, rest = divmod(self.steps, self.steps_per_epoch)
        return epochs * per_epoch + min(rest * self.step_size, per_epoch)

    def for_lengths(self, lengths: np.ndarray, layout: Layout, max_tokens: int | None = None) -> StepPlan:
        """Divide steps by the lengths of their pairs.

        With ``max_tokens`` a step is cut into as many micro-batches as the most demanding step needs: the same number
        in every step, so that accumulation is a constant of the run.

        Args:
            lengths: tokens of prompt, chosen and rejected response of each pair, ``(pairs, 3)``.
            layout: of the batches; padded ones group pairs of similar length.
            max_tokens: most tokens of a micro-batch, padding included; None divides by count.
        """
        if max_tokens is not None:
            return self._cut(ByTokens.of(max_tokens, lengths, layout), self.all_steps())
        longest = lengths[:, 0] + lengths[:, 1:].max(axis=1)
        return replace(self, micro_batching=ByCount(longest if layout == "padded" else None))

    def within(self, budget: int, lengths: np.ndarray, layout: Layout) -> StepPlan:
        """Divide steps by count where no micro-batch can have more than ``budget`` tokens, else by tokens.

        Neither depends on the length of the run: a step of a later epoch that needs more micro-batches than any of the
        first epoch's fullest :data:`STEPS_EXAMINED` has larger ones. One device leaves the micro-batches that a step
        does not need empty.

        Args:
            budget: tokens of a micro-batch, padding included.
            lengths, layout: see :meth:`for_lengths`.
        """
        by_tokens = ByTokens.of(budget, lengths, layout, fewest=self.world_size == 1)
        if by_tokens.most_tokens(self.micro_batch_size) <= budget:
            return self.for_lengths(lengths, layout)
        return self._cut(by_tokens, self._fullest_steps(np.minimum(by_tokens.alone(), budget)))

    def in_pairs(self, most: int) -> StepPlan:
        """Divide steps by count into micro-batches of at most ``most`` pairs, where lengths are not known."""
        return replace(self, accumulation=max(self.accumulation, -(-self.step_size // (most * self.world_size))))

    def _cut(self, by_tokens: ByTokens, steps: Iterable[Sequence[int]]) -> StepPlan:
        needed = max(map(by_tokens.needed, steps))
        return replace(self, micro_batching=by_tokens, accumulation=-(-needed // self.world_size))

    def _fullest_steps(self, tokens: np.ndarray) -> Iterator[Sequence[int]]:
        """Yield the rows of the first epoch's :data:`STEPS_EXAMINED` steps with most ``tokens``, given by pair."""
        order = np.asarray(self.order(0))[: self.pairs - self.dropped]
        starts = np.arange(0, len(order), self.step_size)
        fullest = np.add.reduceat(tokens[order], starts).argsort()[::-1][:STEPS_EXAMINED]
        return (order[start : start + self.step_size].tolist() for start in starts[fullest].tolist())

    def order(self, epoch: int) -> Sequence[int]:
        """Return all rows of the split in the order of an epoch."""
        if self.seed is None:
            return range(self.pairs)
        return np.random.default_rng([self.seed, epoch]).permutation(self.pairs).tolist()

    def epoch_steps(self, epoch: int) -> Iterator[Sequence[int]]:
        """Yield the rows of each optimiser step of an epoch, over all ranks."""
        order, end = self.order(epoch), self.pairs - self.dropped
        return (order[start : min(start + self.step_size, end)] for start in range(0, end, self.step_size))

    def all_steps(self) -> Iterator[Sequence[int]]:
        """Yield the rows of every step of the run; without a seed all epochs are the same."""
        epochs = range(1 if self.seed is None else self.epochs)
        return islice((rows for epoch in epochs for rows in self.epoch_steps(epoch)), self.steps)

    def sampler(self, rank: int = 0) -> StepBatchSampler:
        """Build one rank's sampler."""
        return StepBatchSampler(self, rank)


class StepBatchSampler(Sampler[MicroBatch]):
    """Yields one rank's micro-batches of an epoch.

    Every step has ``accumulation`` micro-batches per rank, so that counting micro-batches counts steps; a micro-batch
    left without a pair gets a filler pair of weight 0, so that no rank waits forever.
    """

    def __init__(self, plan: StepPlan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.epoch = 0
        self.start = 0  # micro-batches to skip: where a resumed epoch goes on

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of another epoch; naming the current epoch changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Count the micro-batches of an epoch, for each rank."""
        return self.plan.steps_per_epoch * self.plan.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        plan = self.plan
        first, skipped = divmod(self.start, plan.accumulation)
        for rows in islice(plan.epoch_steps(self.epoch), first, None):
            batches = plan.micro_batching.split(rows, plan.accumulation * plan.world_size)
            filler = [batch for batch in batches if batch][-1][-1:]  # one of the shortest, where lengths are known
            places = _Places(rows) if plan.reads_ahead or plan.mismatched else None
            for mine in batches[self.rank :: plan.world_size][skipped:]:
                weights = (1.0,) * len(mine) or (0.0,)
                batch = MicroBatch(rows=tuple(mine or filler), weights=weights, step_pairs=len(rows))
                yield batch if places is None else places.added_to(batch, mismatched=plan.mismatched)
            skipped = 0

    def state(self, epoch: int, consumed: int) -> dict[str, Any]:
        """Return what :meth:`load_state` needs to go on after ``consumed`` micro-batches of ``epoch``."""
        return {"epoch": epoch, "micro_batches": consumed, "of": self._identity()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken.

        Raises:
            CaldpoError: the data, the seed or the sizes of a step differ, so that pairs would be seen twice or never.
        """
        then, now = state["of"], self._identity()
        changed = [f"{name} was {then[name]}, is {now[name]}" for name in now if then[name] != now[name]]
        if changed:
            raise CaldpoError(
                f"the checkpoint's position in the data does not apply here: {', '.join(changed)}",
                remedy="resume with the data and batch settings the run began with",
            )
        self.epoch, self.start = state["epoch"], state["micro_batches"]

    def _identity(self) -> dict[str, int | None]:
        names = ("pairs", "micro_batch_size", "step_size", "accumulation", "world_size", "seed", "dropped")
        return {name: getattr(self.plan, name) for name in names}


class _Places:
    """Where the rows of an optimiser step stand in it."""

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = rows
        self._places = {row: place for place, row in enumerate(rows)}

    def added_to(self, batch: MicroBatch, *, mismatched: bool) -> MicroBatch:
        """Add the places; ``mismatched``: also the row after each, cyclic, in a step of several."""
        places = tuple(self._places[row] for row in batch.rows)
        count = len(self._rows)
        others = tuple(self._rows[(place + 1) % count] for place in places) if mismatched and count > 1 else ()
        return replace(batch, places=places, others=others)
