"""What a run does about losses and gradients that are no numbers: it stops, or skips the step and counts it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import Tensor

from caldpo.distributed.grad_norm import gradients_of
from caldpo.errors import CaldpoError
from caldpo.nonfinite.locate import Finding, SeenBatch, find, merged
from caldpo.nonfinite.step_dump import dump_step
from caldpo.types import PairBatch, PairLogps
from caldpo.utils.collectives import all_gather

MAX_SKIPPED_STEPS = 100
"""Float16 arithmetic skips some steps at the start and then one every 2,000: it looks for its gradients' scale."""


class NonFiniteGuard:
    """Keeps the micro-batches of steps whose numbers are not known yet, and judges them when they are.

    All ranks judge alike: what they judge by, the mean loss and the norm of the reduced gradient, is the same on all.

    Args:
        on_bad: ``stop``, or ``skip`` the update of such a step and go on.
        max_skipped: steps that may be skipped in a run before it stops after all. Those that float16 arithmetic skips
            by itself, because a scaled gradient overflowed, count as well.
    """

    def __init__(self, on_bad: Literal["stop", "skip"] = "stop", max_skipped: int = MAX_SKIPPED_STEPS) -> None:
        self.skips, self.max_skipped = on_bad == "skip", max_skipped
        self.skipped = 0  # steps whose update was not applied
        self.caught: CaldpoError | None = None  # why the run stops, before the weights were touched
        self._open: list[SeenBatch] = []
        self._steps: dict[int, list[SeenBatch]] = {}

    def keep(self, batch: PairBatch, logps: PairLogps, values: dict[str, Tensor]) -> None:
        """Remember a micro-batch of the step at hand, with its loss and terms per pair."""
        self._open.append(SeenBatch(batch, logps, values))

    def close(self, step: int) -> None:
        """The micro-batches kept so far were those of ``step``."""
        self._steps[step], self._open = self._open, []

    def judge(self, module: Any, step: int, metrics: dict[str, float], *, before_update: bool) -> CaldpoError | None:
        """Look at a step's fetched numbers, once, and forget its micro-batches.

        Args:
            module: the module that trains.
            step: optimiser steps before this one.
            metrics: of the step: ``loss`` is the mean over its pairs, ``grad_norm`` that of the reduced gradient.
            before_update: the step's gradients are there and have not met the weights.

        Returns:
            Why the run has to stop; None where it need not.
        """
        seen = self._steps.pop(step, [])
        loss, norm = metrics["loss"], metrics["grad_norm"]
        if math.isfinite(loss) and math.isfinite(norm):
            return None
        if module.scales_gradients and math.isfinite(loss):  # the scale was too large, and will be halved
            self.skipped += 1
            return self._bound(step, f"float16 gradients overflowed at optimiser step {step}, as at the steps before")
        finding = self._find(module, seen, before_update)
        path, unwritten = self._dump(module, step, seen, str(finding))
        what = "loss" if not math.isfinite(loss) else "gradient"
        said = ", ".join(f"{name} {metrics[name]:.4g}" for name in ("loss", "grad_norm", "lr") if name in metrics)
        text = f"the {what} is not a number at optimiser step {step} ({said}): {finding}{unwritten}"
        if self.skips and before_update:
            self.skipped += 1
            gradients_of(module).discard()
            if stop := self._bound(step, text):
                return stop
            if module.trainer.is_global_zero:
                count = f"{self.skipped} of at most {self.max_skipped}"
                Console().print(f"step skipped ({count}): {text}", soft_wrap=True, highlight=False, markup=False)
            return None
        unharmed = before_update or module.scales_gradients  # the scaler steps over such gradients by itself
        if not unharmed:
            text += (
                "; it has met the weights, being looked at only now (trainer.metrics_sync_every=1 looks at every step)"
            )
        error = CaldpoError(text, remedy=remedy_of(path))
        self.caught = error if unharmed else None
        return error

    def _find(self, module: Any, seen: list[SeenBatch], gradients: bool) -> Finding:
        return merged(all_gather(find(seen, module.policy if gradients else None, origin_of(module))))

    def _dump(self, module: Any, step: int, seen: list[SeenBatch], reason: str) -> tuple[Path | None, str]:
        """The file, and what to say where there is none: a full disk must not hide why the run stopped."""
        trainer = module.trainer
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        try:
            path = dump_step(
                Path(trainer.default_root_dir),
                step,
                seen,
                reason=reason,
                rank=trainer.global_rank,
                ranks=trainer.world_size,
                loss=type(module.loss).__name__,
                formula=module.loss.formula,
                data=getattr(trainer, "datamodule", None),
                gradient_scale=scaler.get_scale() if scaler is not None else 1.0,
            )
        except OSError as error:
            return None, f"; its batch could not be written for replay ({error.strerror or error})"
        return path, ""

    def _bound(self, step: int, text: str) -> CaldpoError | None:
        if self.skipped <= self.max_skipped:
            return None
        self.caught = CaldpoError(
            f"more than {self.max_skipped} optimiser steps would have been skipped: {text}",
            key="trainer.max_skipped_steps",
            value=self.max_skipped,
            remedy="find out why with replay= on the batches in nonfinite_batches, lower optim.lr, or use"
            " trainer.precision=bf16-mixed",
        )
        return self.caught


def origin_of(module: Any) -> Callable[[PairBatch, int], str]:
    """What says where the pair at a row of a batch's split comes from, as its data knows."""
    known = getattr(getattr(module.trainer, "datamodule", None), "origin", None)
    return lambda batch, row: f"pair {row}" if known is None or not batch.split else str(known(row, batch.split))


def remedy_of(path: Path | None) -> str:
    """What to do about a bad step, whose batch lies at ``path``."""
    mend = "lower optim.lr, raise loss.beta, or use trainer.precision=32-true"
    if path is None:
        return mend
    run = path.parent.parent
    return f"compute the batch again: python -m caldpo.train resume={run} replay={path}; then {mend}"
