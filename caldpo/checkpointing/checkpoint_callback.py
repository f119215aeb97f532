"""Save checkpoints during training, resume from them exactly, and stop on signals. The reference is in none."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from torch.optim.lr_scheduler import LambdaLR

from caldpo.checkpointing.best_checkpoint import Mode, chosen_mode, is_better
from caldpo.checkpointing.checkpoint_io import OWN_KEY
from caldpo.checkpointing.manifest import FOLDER, SAMPLES, checkpoint_folders
from caldpo.checkpointing.stop_signals import StopSignals
from caldpo.checkpointing.train_state import TrainState
from caldpo.config.bounds import PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.metric_definitions import HELD_OUT

if TYPE_CHECKING:
    from caldpo.lightning_module import PreferenceModule


class Checkpoints(pl.callbacks.Checkpoint):
    """Save the run in ``checkpoints/step-N`` of its folder, and resume it from there.

    Saves every ``every`` optimiser steps, at the ends of epochs longer than that, at the end of training, and when
    SIGTERM, SIGUSR1 or Ctrl-C ask for a stop: then after the current micro-batch, inside an accumulation window or an
    evaluation too, as of the last optimiser step. The run then exits with code 128 + signal.

    With ``monitor`` also after each evaluation at which that metric is better than at all earlier ones but the one
    before training, and the best checkpoint is kept beside the last ones.

    Args:
        every: optimiser steps between checkpoints; None: only when a signal stops the run, and for ``monitor``.
        keep: how many of the last checkpoints are kept, or all.
        monitor: logged name of a held-out metric (``val/loss``); None: none is watched.
        mode: whether it is better when smaller or larger; ``auto``: by its definition.

    Raises:
        CaldpoError: ``mode=auto`` for a metric that is not plainly better in one direction.
    """

    @validated
    def __init__(
        self,
        every: PositiveInt | None = 100,
        keep: PositiveInt | Literal["all"] = 2,
        monitor: str | None = None,
        mode: Literal["auto", "min", "max"] = "auto",
    ) -> None:
        self.every, self.keep, self.monitor = every, keep, monitor
        self.mode: Mode = "min" if monitor is None else chosen_mode(monitor, mode)
        self.best: tuple[int, float] | None = None  # optimiser steps and value of the best evaluation
        self.earlier_seconds = 0.0  # of training, in the run's earlier stretches
        self.saved_at: int | None = None  # optimiser steps of the last checkpoint
        self.train_state: TrainState | None = None
        self._signals, self._started = StopSignals(), time.monotonic()
        self._warned_of_disk = False

    # -- training

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        own = checkpoint[OWN_KEY]
        manifest = own["manifest"]
        note = module.checkpoint_plan.accept(manifest, first_rank=trainer.is_global_zero)
        if note and trainer.is_global_zero:
            _print_error(note)
        module.restore_training_state(own["module"])
        self.train_state = TrainState(
            step=manifest["step"],
            loops=checkpoint["loops"]["fit_loop"],
            callbacks=checkpoint["callbacks"],
            module=own["module"],
            samples=manifest["samples"],
            evaluate=own["evaluate"],
        )
        self.saved_at, self.earlier_seconds = manifest["step"], manifest["seconds"]

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._signals.watch()  # after Lightning has installed its own handlers
        if self.train_state is None:
            return
        _follow_schedule(trainer)
        # Lightning loses the position in the epoch where the number of steps was asked for before
        for state in self.train_state.loops["state_dict"].get("combined_loader", ()):
            loader: Any = trainer.train_dataloader
            loader.load_state_dict(state)
        if self.train_state.evaluate and module.evaluated_at != self.train_state.step:
            # the run stopped before or in the evaluation that was due; Lightning would continue with the next batch
            loop = trainer.fit_loop.epoch_loop.val_loop
            trainer.validating, loop.restarting = True, False
            loop.run()
            trainer.training = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:  # every step has as many micro-batches
            self.train_state = TrainState.capture(trainer, module)
            if self._is_due(trainer):
                self.save(trainer, module)
        self._stop_if_asked(trainer, module)

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if not _is_fitting(trainer):  # evaluations before and after training: a rank that stops alone blocks the others
            self._signals.watch()

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
        self._stop_if_asked(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self.monitor is not None:
            self._watch(trainer, module, self.monitor)
        self._stop_if_asked(trainer, module)
        if not _is_fitting(trainer):
            self._signals.release()

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self.every is not None or self.monitor is not None:
            self.save(trainer, module)  # of a run that another callback has stopped early
        self._signals.release()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self._signals.release()
        # a non-finite step that was caught before its update: these weights are what it can be replayed with
        if self.every is not None and module.caught_before_update:
            try:
                self.save(trainer, module)
            except CaldpoError as error:  # such as a full disk: what ended the run matters more
                exception.add_note(f"The weights before that step could not be saved either: {error}")

    # -- saving

    def save(self, trainer: pl.Trainer, module: PreferenceModule) -> Path | None:
        """Save the run as of the last optimiser step's end, if any; all ranks have to take part.

        Raises:
            CaldpoError: it cannot be written, or its weights must not be saved.
        """
        if self.train_state is None:
            return None
        run_dir = Path(trainer.default_root_dir)
        folder = run_dir / FOLDER / f"step-{self.train_state.step}"
        if self.saved_at == self.train_state.step:
            return folder
        module.require_good_weights()
        if trainer.is_global_zero:
            for name in ("metrics.csv", SAMPLES):
                _sync(run_dir / name)
        trainer.save_checkpoint(folder, weights_only=False)  # optimiser and all else as well
        self.saved_at = self.train_state.step
        if trainer.is_global_zero and self.keep != "all":
            kept = self._remove_surplus(trainer, run_dir, self.keep)
            most = self.keep + (self.monitor is not None)  # the best one may be none of the last
            self._check_disk(folder, most + 1 - kept)
        return folder

    def state_dict(self) -> dict[str, Any]:
        return {} if self.best is None else {"monitor": self.monitor, "mode": self.mode, "best": list(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (state_dict.get("monitor"), state_dict.get("mode")) == (self.monitor, self.mode):  # else watched anew
            step, value = state_dict["best"]
            self.best = int(step), float(value)

    def _watch(self, trainer: pl.Trainer, module: PreferenceModule, metric: str) -> None:
        """Save the weights of this evaluation where they are the best so far; all ranks have the same values."""
        if metric not in module.latest:
            held_out = sorted(name for name in module.latest if name.startswith(HELD_OUT))
            raise CaldpoError(
                "is not measured at evaluations of this run",
                key="callbacks.checkpoint.monitor",
                value=metric,
                remedy=f"choose among {', '.join(held_out)}",
            )
        value, state = module.latest[metric], self.train_state
        if state is None or (self.best is not None and not is_better(value, self.best[1], self.mode)):
            return
        if self.saved_at != state.step:
            self.save(trainer, module)
        self.best = state.step, value
        if trainer.is_global_zero and self.keep != "all":  # the one that was the best until now
            self._remove_surplus(trainer, Path(trainer.default_root_dir), self.keep)

    def _remove_surplus(self, trainer: pl.Trainer, run_dir: Path, keep: int) -> int:
        """Remove all checkpoints but the last ones and the best; return how many are left."""
        saved = checkpoint_folders(run_dir)
        kept = {*list(saved)[-keep:], *(() if self.best is None else (self.best[0],))}
        for step, old in saved.items():
            if step not in kept:
                trainer.strategy.remove_checkpoint(old)
        return len(kept & saved.keys())

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        if self.train_state is None:  # saved by other code, before the first step
            return
        checkpoint["loops"]["fit_loop"] = self.train_state.loops
        checkpoint["callbacks"] = self.train_state.callbacks
        # an evaluation since then is repeated; rows of completed steps have been fetched since then
        module_state = module.training_state() | {k: self.train_state.module[k] for k in ("rows", "evaluated_at")}
        checkpoint[OWN_KEY] = {
            "module": module_state,
            "evaluate": self.train_state.evaluate,
            "manifest": {
                "step": self.train_state.step,
                "rows": self.train_state.module["rows"],
                "samples": self.train_state.samples,
                "seconds": self.earlier_seconds + time.monotonic() - self._started,
                "identity": module.checkpoint_plan.identity,
                "versions": module.checkpoint_plan.environment,
            },
        }

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if self.every is None and self.monitor is None:
            return False
        step, per_epoch = trainer.global_step, int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        epochs = trainer.max_epochs if trainer.max_steps == -1 else None
        at_end = step == (trainer.max_steps if epochs is None else epochs * per_epoch)
        if self.every is None:
            return at_end
        return at_end or step % self.every == 0 or (trainer.is_last_batch and per_epoch > self.every)

    def _check_disk(self, folder: Path, more: int) -> None:
        """Warn once where the disk has no room for the ``more`` checkpoints still to come beside the saved ones."""
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(folder).free
        if free < more * size and not self._warned_of_disk:
            self._warned_of_disk = True
            _print_error(
                f"note: a checkpoint takes {size / 2**20:,.0f} MiB, and the {free / 2**20:,.0f} MiB left on the disk"
                f" hold {free // size} of the {more} that need room beside the saved ones: free disk space, or lower"
                " callbacks.checkpoint.keep"
            )

    def _stop_if_asked(self, trainer: pl.Trainer, module: PreferenceModule) -> None:
        """Save and exit where any rank has received a signal."""
        number = self._signals.asked()
        if number is None:
            return
        saved = self.save(trainer, module)
        if trainer.is_global_zero:
            where = "nothing to save yet" if saved is None else f"saved in {saved}"
            _print_error(
                f"stopped by {signal.Signals(number).name} after {trainer.global_step} optimiser steps: {where}\n"
                f"  to resume: python -m caldpo.train resume={trainer.default_root_dir}"
            )
        self._signals.pass_on(number)
        raise SystemExit(128 + number)


def _follow_schedule(trainer: pl.Trainer) -> None:
    """Set the learning rates of the next update, which a checkpoint of a run that was shorter has by its own length."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if isinstance(scheduler, LambdaLR):
            groups = scheduler.optimizer.param_groups
            for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                group["lr"] = base * factor(scheduler.last_epoch)


def _is_fitting(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _sync(path: Path) -> None:
    """Flush a file to the disk."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())
