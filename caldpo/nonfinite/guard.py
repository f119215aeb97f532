"""Check every optimiser step and every evaluation for non-finite values, and stop the run or skip the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor

from caldpo.distributed.strategy_interface import policy_strategy
from caldpo.errors import CaldpoError
from caldpo.nonfinite.locate import SeenBatch, locate, merged
from caldpo.nonfinite.step_dump import dump_step
from caldpo.types import PairBatch, PairLogps
from caldpo.utils.collectives import all_gather
from caldpo.utils.finite_checks import REMEDY, NonFiniteError, nonfinite_names
from caldpo.utils.notes import print_notes

if TYPE_CHECKING:
    from caldpo.lightning_module import PreferenceModule


@runtime_checkable
class PairOrigins(Protocol):
    """Data that knows where its pairs come from, such as ``pairs.jsonl:7``."""

    def origin(self, index: int, split: str) -> str: ...


class NonFiniteGuard:
    """Record the micro-batches of each optimiser step, and check the step once its metrics have been fetched.

    All ranks decide alike: the mean loss and the norm of the reduced gradient are the same on all.

    Args:
        action: ``stop`` the run at a non-finite step, or ``skip`` its update and go on.
        max_skipped: steps that may be skipped in a run before it stops after all. Those that float16 arithmetic skips
            by itself count as well: some at the start and then one every 2,000, while it adjusts the gradients' scale.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop", max_skipped: int = 100) -> None:
        self.skips, self.max_skipped = action == "skip", max_skipped
        self.skipped = 0  # steps whose update was not applied
        self.caught: CaldpoError | None = None  # why the run stops, where the weights have not met the step
        self._open: list[SeenBatch] = []
        self._steps: dict[int, list[SeenBatch]] = {}

    def record(self, batch: PairBatch, logps: PairLogps, values: dict[str, Tensor]) -> None:
        """Keep a micro-batch of the current step, with its loss and terms per pair."""
        self._open.append(SeenBatch(batch, logps, values))

    def end_step(self, step: int) -> None:
        """Assign the micro-batches recorded so far to ``step``."""
        self._steps[step], self._open = self._open, []

    def check(
        self, module: PreferenceModule, step: int, metrics: Mapping[str, float], *, before_update: bool
    ) -> CaldpoError | None:
        """Check a step's fetched metrics, once, and drop its micro-batches; all ranks have to call.

        ``before_update``: whether the step's gradients still exist and the update has not been applied.

        Returns:
            Why the run has to stop; None where it need not.
        """
        seen = self._steps.pop(step, [])
        loss, norm = metrics["loss"], metrics["grad_norm"]
        if math.isfinite(loss) and math.isfinite(norm):
            return None
        if module.scales_gradients and math.isfinite(loss):  # the scale was too large, and will be halved
            self.skipped += 1
            return self._check_limit(f"float16 gradients overflowed at optimiser step {step}, as at steps before")
        finding = merged(all_gather(locate(seen, module.policy if before_update else None, origins_of(module.trainer))))
        path, dump_failure = _dump(module, step, seen, str(finding))
        what = "loss" if not math.isfinite(loss) else "gradient"
        values = ", ".join(f"{name} {metrics[name]:.4g}" for name in ("loss", "grad_norm", "lr") if name in metrics)
        message = f"the {what} is not finite at optimiser step {step} ({values}): {finding}{dump_failure}"
        if self.skips and before_update:
            return self._skip(module, message)
        unharmed = before_update or module.scales_gradients  # float16's scaler skips such an update by itself
        if not unharmed:
            message += (
                "; its update has changed the weights, since metrics were fetched later"
                " (trainer.metrics_sync_every=1 checks every step before its update)"
            )
        remedy = "lower optim.lr, raise loss.beta, or use trainer.precision=32-true"
        if path is not None:
            run_dir = path.parent.parent
            remedy = f"compute the batch again: python -m caldpo.train resume={run_dir} replay={path}; then {remedy}"
        error = NonFiniteError(message, remedy=remedy)
        self.caught = error if unharmed else None
        return error

    def _skip(self, module: PreferenceModule, message: str) -> CaldpoError | None:
        self.skipped += 1
        policy_strategy(module.trainer.strategy).gradients(module.policy).discard()
        if stop := self._check_limit(message):
            return stop
        if module.trainer.is_global_zero:
            count = f"{self.skipped} of at most {self.max_skipped}"
            print(f"step skipped ({count}): {message}", flush=True)
        return None

    def _check_limit(self, message: str) -> CaldpoError | None:
        if self.skipped <= self.max_skipped:
            return None
        self.caught = NonFiniteError(
            f"more than {self.max_skipped} optimiser steps would have been skipped: {message}",
            key="trainer.max_skipped_steps",
            value=self.max_skipped,
            remedy="find out why with replay= on the batches in nonfinite_batches, lower optim.lr, or use"
            " trainer.precision=bf16-mixed",
        )
        return self.caught


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is kept of a held-out :class:`PairBatch`: not its tokens."""

    index: Tensor
    weight: Tensor
    split: str
    pairs: int


class HeldOutGuard:
    """Record the values of held-out pairs, so that rows can be named where their means are not finite.

    A few numbers per pair, which stay on the device: nothing waits for them while all are finite.
    """

    def __init__(self) -> None:
        self._seen: list[SeenBatch] = []

    def reset(self) -> None:
        """Drop what the last evaluation recorded."""
        self._seen = []

    def record(self, batch: PairBatch, logps: PairLogps, values: dict[str, Tensor]) -> None:
        """Keep a batch with its loss and terms per pair."""
        rows: Any = _Rows(batch.index, batch.weight, batch.split, batch.pairs)
        self._seen.append(SeenBatch(rows, logps, values))

    def check(self, module: PreferenceModule, means: Mapping[str, float]) -> CaldpoError | None:
        """Check the means of an evaluation over all ranks; all of them have to call.

        Where non-finite steps are skipped, non-finite rows are noted and the run goes on, unless weights are not finite
        either: no later step could be any better.

        Returns:
            Why the run has to stop; None where it need not.
        """
        if all(map(math.isfinite, means.values())):
            return None
        weights = nonfinite_names((name, p.detach()) for name, p in module.policy.named_parameters())
        located = replace(locate(self._seen, None, origins_of(module.trainer)), weights=tuple(weights))
        finding = merged(all_gather(located))
        if not finding.bad:
            return None  # a mean over so many pairs overflowed, or is undefined
        message = f"held-out values are not finite after {module.global_step} optimiser steps: {finding}"
        if module.nonfinite.skips and not finding.weights:
            print_notes([message])
            return None
        return NonFiniteError(message, remedy=REMEDY)


def origins_of(trainer: pl.Trainer) -> Callable[[int, str], str]:
    """Return a function that describes where a pair comes from, by its row and split."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return lambda row, split: data.origin(row, split) if split and isinstance(data, PairOrigins) else f"pair {row}"


def _dump(module: PreferenceModule, step: int, seen: list[SeenBatch], reason: str) -> tuple[Path | None, str]:
    """Write this rank's share of the step; a full disk must not hide why the run stopped."""
    if not seen:
        return None, ""
    trainer, plugin = module.trainer, module.trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
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
            origin=origins_of(trainer),
            gradient_scale=scaler.get_scale() if scaler is not None else 1.0,
        )
    except OSError as error:
        return None, f"; its batch could not be written for replay ({error.strerror or error})"
    return path, ""
