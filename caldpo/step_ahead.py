"""Compute what a loss needs of all pairs of an optimiser step before the step's first backward pass.

The policy runs the step's micro-batches once more, without gradient and without dropout: one more forward pass, only
for losses that depend on the batch. The reference's log-probs are kept for the pass with gradient. Ranks put their
pairs into one table in the step's order, so that nothing depends on how the step is divided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from caldpo.errors import CaldpoError
from caldpo.losses.base import PreferenceLoss
from caldpo.metrics import sum_over_ranks
from caldpo.types import PairBatch, PairLogps, StepStatistics

_COLUMNS = tuple(field.name for field in fields(PairLogps) if field.name != "of_step")


@dataclass(frozen=True, slots=True)
class SeenPairs:
    """Log-probs of a batch, without gradient, and of its mismatched responses, where the loss needs them."""

    batch: PairBatch  # without tokens
    logps: PairLogps
    mismatched: PairLogps | None

    @property
    def places(self) -> Tensor:
        """Of the pairs in the step; held-out pairs are one step, in the order of their split."""
        return self.batch.index if self.batch.places is None else self.batch.places

    def statistics(self, step: StepStatistics) -> dict[str, Tensor]:
        """Pick the statistics of these pairs."""
        return {name: values[self.places] for name, values in step.per_pair.items()}


class StepAhead:
    """The statistics of the current optimiser step, micro-batch by micro-batch, and of the held-out pairs.

    Args:
        loss: that depends on the batch.
        run: computes the log-probs of a batch without gradient and without dropout, the reference's if the loss needs
            them.
    """

    def __init__(self, loss: PreferenceLoss, run: Callable[[PairBatch], PairLogps]) -> None:
        self._loss, self._run = loss, run
        self._coming: deque[PairLogps | None] = deque()
        self._state: dict[str, Tensor] = {}
        self._held_out: list[SeenPairs] = []
        self._held_out_count = 0

    def take(self, batch: PairBatch, *, alone: bool) -> PairLogps | None:
        """Give a micro-batch's log-probs with its statistics; its step's first one makes all of the step be computed.

        None for filler where this process is ``alone``: no other rank waits for it.
        """
        if batch.ahead:
            run = [not (one.filler and alone) for one in batch.ahead]
            seen = [_see(one, self._run) for one, real in zip(batch.ahead, run, strict=True) if real]
            # weights that autocast has converted in a pass without gradient must not serve one with it
            torch.clear_autocast_cache()
            step = _observed(self._loss, seen, _planned(batch), training=True)
            known = (replace(one.logps, of_step=one.statistics(step)) for one in seen)
            self._coming = deque(next(known) if real else None for real in run)
            self._state = step.state
        if not self._coming:
            raise _unplanned_error()
        return self._coming.popleft()

    def end_step(self) -> None:
        """Write what the loss remembers of the step into its buffers, once its last backward pass is done."""
        with torch.no_grad():
            for name, value in self._state.items():
                self._loss.get_buffer(name).copy_(value)
        self._state = {}

    def start_held_out(self) -> None:
        """Begin an evaluation."""
        self._held_out = []

    def add_held_out(self, batch: PairBatch, run: Callable[[PairBatch], PairLogps]) -> PairLogps:
        """Run a batch of held-out pairs, and keep its log-probs until those of all are known."""
        self._held_out.append(_see(batch, run))
        self._held_out_count = _planned(batch)
        return self._held_out[-1].logps

    def held_out(self) -> Iterator[tuple[PairBatch, PairLogps]]:
        """Yield the kept log-probs, once, with the statistics of all held-out pairs; all ranks have to call.

        They are one step, and what the loss remembers does not change.
        """
        seen, self._held_out = self._held_out, []
        if seen:
            step = _observed(self._loss, seen, self._held_out_count, training=False)
            yield from ((one.batch, replace(one.logps, of_step=one.statistics(step))) for one in seen)


def _planned(batch: PairBatch) -> int:
    if batch.step_pairs is None:
        raise _unplanned_error()
    return batch.step_pairs


def _unplanned_error() -> CaldpoError:
    return CaldpoError(
        "this loss reads whole optimiser steps, and these batches do not say what else is in theirs",
        key="loss",
        remedy="train by caldpo.fit, whose data plans its steps, or choose another loss for a DataLoader of your own",
    )


def _observed(loss: PreferenceLoss, seen: Sequence[SeenPairs], pairs: int, *, training: bool) -> StepStatistics:
    """Let the loss observe a step of ``pairs`` pairs, of which this rank has ``seen`` some; all ranks have to call."""
    step = _in_order([(one, one.logps) for one in seen], pairs)
    mixed = [(one, one.mismatched) for one in seen if one.mismatched is not None]
    with torch.no_grad():
        return loss.observe(step, _in_order(mixed, pairs) if mixed else None, training=training)


def _in_order(parts: Sequence[tuple[SeenPairs, PairLogps]], pairs: int) -> PairLogps:
    """Put the pairs of all ranks into the step's order, without filler.

    Each pair is one rank's: the others add 0, which changes no digit.
    """
    first = parts[0][1]
    names = [name for name in _COLUMNS if getattr(first, name) is not None]
    columns = [torch.stack([getattr(logps, name) for name in names]) for _, logps in parts]
    table = columns[0].new_zeros(len(names), pairs)
    for (one, _), values in zip(parts, columns, strict=True):
        if not one.batch.filler:
            table[:, one.places] = values
    whole: dict[str, Any] = dict.fromkeys(_COLUMNS) | dict(zip(names, sum_over_ranks(table), strict=True))
    return PairLogps(**whole)


def _see(batch: PairBatch, run: Callable[[PairBatch], PairLogps]) -> SeenPairs:
    mismatched = None if batch.mismatched is None else run(batch.mismatched)
    return SeenPairs(batch.without_tokens(), run(batch), mismatched)
