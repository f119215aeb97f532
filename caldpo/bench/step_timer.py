"""Callback that measures a training run of this project; it changes nothing of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from caldpo import __version__
from caldpo.bench.benchmark_settings import VARIANTS, CaldpoVariant
from caldpo.bench.measure import StepMeter, now
from caldpo.bench.worker_job import Answer, Ids, Job, digest, read, write
from caldpo.metrics_file import NAME, read_rows
from caldpo.types import PairBatch


class StepTimer(pl.Callback):
    """Measure the optimiser steps of a run, and write the answer at its end.

    Built after the imports and before the policy loads, which is where memory begins to count.
    """

    def __init__(self, job_file: str) -> None:
        self.job = read(Job, Path(job_file))
        self.meter = StepMeter(self.job.settings, self.job.device)
        self.reference_seconds: float | None = None
        self.digests: list[str] = []
        self.reference, self.layout = "", ""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if not self.reference:  # called for validation and for training
            self.reference = type(pl_module.reference).__name__
            pl_module.reference.prepare = self._timed(pl_module.reference.prepare)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = list(datamodule.train_dataloader())
        self.digests = step_digests(batches, self.job.settings.micro_batch_size)
        self.layout = f"{'padded' if batches[0].spans is None else 'packed'}, {len(batches)} micro-batches"
        del batches
        self.meter.start_training()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step != self.meter.steps:  # else inside an accumulation window
            self.meter.step_done()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.fetch_rows()  # metrics that are still on the device
        rows = [row for row in read_rows(Path(trainer.default_root_dir) / NAME) if row["grad_norm"]]
        variant = VARIANTS[self.job.variant]
        assert isinstance(variant, CaldpoVariant)
        overrides = " ".join(variant.filled(self.job.model.max_length)) or "defaults"
        versions = {name: version(name) for name in ("pytorch-lightning", "transformers", "torch")}
        answer = Answer(
            losses=[float(row["loss"]) for row in rows],
            grad_norms=[float(row["grad_norm"]) for row in rows],
            step_digests=self.digests,
            seconds=self.meter.seconds,
            reference_seconds=self.reference_seconds,
            memory=self.meter.memory,
            options=f"{overrides} ({self.reference}, {self.layout})",
            versions={"caldpo": __version__, **versions},
        )
        write(answer, self.job.answer)

    def _timed(self, prepare: Callable[[], None]) -> Callable[[], None]:
        def timed() -> None:
            started = now(self.job.device)
            prepare()
            self.reference_seconds = (self.reference_seconds or 0.0) + now(self.job.device) - started

        return timed


def step_digests(batches: Iterable[PairBatch], pairs_per_step: int) -> list[str]:
    """Digest each optimiser step, whose micro-batches follow each other in ``batches``."""
    digests: list[str] = []
    step: list[Ids] = []
    for batch in batches:
        step += pairs_of(batch)
        if len(step) == pairs_per_step:
            digests.append(digest(step))
            step = []
    return digests


def pairs_of(batch: PairBatch) -> list[Ids]:
    """Read prompt, chosen and rejected ids back from a batch of any layout."""
    flat, positions = batch.input_ids.flatten().tolist(), batch.position_ids.flatten().tolist()
    responses: list[list[int]] = [[] for _ in range(2 * batch.pairs)]
    prompts: list[list[int]] = [[] for _ in range(2 * batch.pairs)]
    columns = (batch.targets.tolist(), batch.predicts.tolist(), batch.response.tolist())
    for token, at, response in zip(*columns, strict=True):
        if not responses[response]:  # the end of the prompt predicts the first token of the response
            prompts[response] = flat[at - positions[at] : at + 1]
        responses[response].append(token)
    count = batch.pairs
    if prompts[:count] != prompts[count:]:
        raise RuntimeError("the responses of a pair follow different prompts")
    rows = zip(prompts[:count], responses[:count], responses[count:], strict=True)
    return [row for row, weight in zip(rows, batch.weight.tolist(), strict=True) if weight]  # no filler
