"""What one optimiser step is logged with: exact means, gradient norm, clipping, throughput."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import SumMetric

from caldpo.metrics import WeightedMeans
from caldpo.types import PairBatch


class StepLog:
    """Collects the micro-batches of an optimiser step and turns them into one row of metrics."""

    def __init__(self) -> None:
        self.means, self.tokens = WeightedMeans(), SumMetric()
        self.step = 0  # optimiser steps whose row is written
        self.grad_norm = self.lr = 0.0
        self.clipped = 0
        self._started = self._paused = time.perf_counter()

    def start(self, device: torch.device) -> None:
        """Begin to measure on ``device``."""
        self.means.to(device)
        self.tokens.to(device)
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
        self.tokens.update(batch.attention_mask.sum())

    def before_update(self, norm: Tensor, limit: float | None, lr: float) -> None:
        """Note the gradient's norm before clipping, whether it is above the limit, and the learning rate."""
        self.grad_norm, self.lr = norm.item(), lr
        self.clipped += bool(limit and self.grad_norm > limit)

    def describe(self) -> str:
        """The step's means so far, in words."""
        return ", ".join(f"{k} {v:.4g}" for k, v in self.means.floats().items())

    def finish(self) -> dict[str, float]:
        """One row of metrics for the step that just ended; ``clip_fraction`` is over all steps so far."""
        metrics = self.means.floats()
        now = time.perf_counter()
        metrics |= {
            "grad_norm": self.grad_norm,
            "clip_fraction": self.clipped / self.step,
            "lr": self.lr,
            "tokens_per_second": self.tokens.compute().item() / (now - self._started),
        }
        self._started = now
        self.means.reset()
        self.tokens.reset()
        return metrics
