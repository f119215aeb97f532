"""What one optimiser step is logged with: exact means, gradient norm, clipping, throughput.

Nothing here waits for the device until :meth:`StepMetrics.fetch`: a step's row is put together on the device and
stays there, so that the host can run ahead and queue the next steps' work. One transfer then brings the rows
of several steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from caldpo.metrics import WeightedMeans, sum_over_ranks
from caldpo.types import PairBatch

OWN = ("tokens", "grad_norm", "clipped")  # what a row holds behind the means


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A finished step whose numbers are still on the device.

    Args:
        step: optimiser steps that the weights had seen when it was measured.
        names: of the means at the head of ``values``.
        values: the means, then :data:`OWN`; float64.
        lr: learning rate of the update.
    """

    step: int
    names: tuple[str, ...]
    values: Tensor
    lr: float


class StepMetrics:
    """Collects the micro-batches of an optimiser step and turns them into one row of metrics."""

    def __init__(self) -> None:
        self.means = WeightedMeans()
        self.tokens = torch.zeros((), dtype=torch.float64)
        self.pending: list[PendingRow] = []
        self.rows = self.clipped = 0  # rows fetched so far, and those of clipped steps
        self._started = self._paused = time.perf_counter()

    def start(self, device: torch.device) -> None:
        """Begin to measure on ``device``."""
        self.means.to(device)
        self.tokens = self.tokens.to(device)
        self._started = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock: what follows is not training."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Let the clock run on from where it was stopped."""
        self._started += time.perf_counter() - self._paused

    def add(self, values: Mapping[str, Tensor], batch: PairBatch) -> None:
        """Add one micro-batch's values per pair."""
        self.means.update(values, batch.weight)
        self.tokens += (batch.response_lengths.view(2, -1) * batch.weight).sum()

    def close(self, step: int, norm: Tensor, limit: float | None, lr: float) -> None:
        """End the row of ``step``: every micro-batch is in, and the weights are about to be updated.

        Args:
            step: optimiser steps so far, without this one.
            norm: of the gradient, before clipping.
            limit: the norm above which it is clipped; None does not clip.
            lr: learning rate of the update.
        """
        sums = sum_over_ranks(torch.cat([self.means.sums, torch.stack([self.means.weight, self.tokens])]))
        means, (weight, tokens) = sums[:-2], sums[-2:]
        norm = norm.detach().to(sums)
        clipped = torch.zeros_like(norm) if limit is None else (norm > limit).to(sums)
        values = torch.cat([means / weight, torch.stack([tokens, norm, clipped])])
        self.pending.append(PendingRow(step, self.means.names, values, lr))
        self.means.reset()
        self.tokens.zero_()

    def fetch(self) -> list[tuple[int, dict[str, float]]]:
        """The rows that were closed since the last time, each with its step: one transfer, which waits.

        ``tokens_per_second`` counts the response tokens of real pairs, which no layout changes, and is that of all
        these steps together: between two fetches the host runs ahead of the device, and its clock says nothing
        about a single step. ``clip_fraction`` is over all steps up to
        the row's own.
        """
        if not self.pending:
            return []
        pending, self.pending = self.pending, []
        numbers = torch.cat([row.values for row in pending]).tolist()
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        rows: list[tuple[int, dict[str, float]]] = []
        tokens = 0.0
        for row in pending:
            means, own = numbers[: len(row.names)], numbers[len(row.names) : len(row.names) + len(OWN)]
            numbers = numbers[len(row.names) + len(OWN) :]
            self.rows, self.clipped = self.rows + 1, self.clipped + int(own[2])
            tokens += own[0]
            metrics = dict(zip(row.names, means, strict=True))
            metrics |= {"grad_norm": own[1], "clip_fraction": self.clipped / self.rows, "lr": row.lr}
            rows.append((row.step, metrics))
        for _, metrics in rows:
            metrics["tokens_per_second"] = tokens / seconds
        return rows
