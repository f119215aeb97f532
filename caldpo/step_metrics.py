"""Metrics of optimiser steps (exact means, gradient norm, clipping, throughput) and of evaluations.

Nothing here waits for the device until :meth:`StepMetrics.fetch`: a step's row is computed on the device and stays
there, so that the host can queue the next steps' work. One transfer then fetches the rows of several steps.

Both classes hold a torchmetrics ``Metric`` without being a ``Module``: as an attribute of the LightningModule they are
plain objects, and Lightning neither saves them nor converts their float64 sums to the run's dtype.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from caldpo.metrics import WeightedMeans, sum_over_ranks
from caldpo.types import PairBatch

OWN = ("tokens", "grad_norm", "clipped")  # values of a row after the means


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A step whose metrics are still on the device."""

    step: int  # optimiser steps that the weights had seen when it was measured
    names: tuple[str, ...]  # of the means
    values: Tensor  # the means, then OWN; float64
    lr: float


class StepMetrics:
    """Accumulates the micro-batches of an optimiser step into one row of metrics."""

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
        """Stop the clock before what is not training."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Restart the clock."""
        self._started += time.perf_counter() - self._paused

    def add(self, values: Mapping[str, Tensor], batch: PairBatch) -> None:
        """Add a micro-batch's values, each of shape ``(pairs,)``."""
        self.means.update(values, batch.weight)
        self.tokens += (batch.response_lengths.view(2, -1) * batch.weight).sum()

    def close(self, step: int, norm: Tensor, limit: float | None, lr: float) -> None:
        """Close the row of a step, after its last micro-batch and before its update.

        Args:
            step: optimiser steps so far, without this one.
            norm: of the gradient, before it is clipped to ``limit``.
            limit: None does not clip.
            lr: of the update.
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
        """Fetch the rows closed since the last call, each with its step, in one transfer.

        ``tokens_per_second`` counts the response tokens of real pairs, which no layout changes, over all these steps
        together: between two fetches the host runs ahead of the device, and its clock does not measure a single step.
        ``clip_fraction`` is over all steps up to the row's own.
        """
        if not self.pending:
            return []
        pending, self.pending = self.pending, []
        numbers = iter(torch.cat([row.values for row in pending]).tolist())
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        rows: list[tuple[int, dict[str, float]]] = []
        tokens = 0.0
        for row in pending:
            metrics = {name: next(numbers) for name in row.names}
            own = {name: next(numbers) for name in OWN}
            self.rows, self.clipped = self.rows + 1, self.clipped + int(own["clipped"])
            tokens += own["tokens"]
            metrics |= {"grad_norm": own["grad_norm"], "clip_fraction": self.clipped / self.rows, "lr": row.lr}
            rows.append((row.step, metrics))
        for _, metrics in rows:
            metrics["tokens_per_second"] = tokens / seconds
        return rows


class HeldOutMetrics:
    """Accumulates the exact means of an evaluation of the held-out pairs."""

    def __init__(self) -> None:
        self._means = WeightedMeans()

    def reset(self, device: torch.device) -> None:
        """Begin an evaluation on ``device``."""
        self._means.reset()
        self._means.to(device)

    def add(self, values: Mapping[str, Tensor], batch: PairBatch) -> None:
        """Add a batch's values, each of shape ``(pairs,)``."""
        self._means.update(values, batch.weight)

    def fetch(self) -> dict[str, float]:
        """Fetch the means over all ranks; empty before the first batch."""
        return self._means.floats() if self._means.names else {}
