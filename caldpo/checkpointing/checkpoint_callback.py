"""Checkpoints from which a run goes on exactly, and the signals that make it stop. The reference is in none."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from rich.console import Console

from caldpo.checkpointing.checkpoint_io import OURS
from caldpo.checkpointing.manifest import FOLDER, SAMPLES, checkpoint_folders
from caldpo.checkpointing.run_identity import other_versions, require_agreement, require_same
from caldpo.checkpointing.stop_signals import StopSignals
from caldpo.checkpointing.train_state import TrainState
from caldpo.config.bounds import PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError


class Checkpoints(pl.callbacks.Checkpoint):
    """Saves the run in ``checkpoints/step-N`` of its folder, and lets it go on from there.

    It does so every ``every`` optimiser steps, at the ends of epochs that are longer than that, at the end of training,
    and when SIGTERM, SIGUSR1 or Ctrl-C ask for a stop: then after the micro-batch at hand, inside an accumulation
    window or an evaluation too, as of the last optimiser step. The run then ends with code 128 + signal.

    Args:
        every: optimiser steps between checkpoints; None: only when a signal stops the run.
        keep: so many of the last ones (with two there is another where one is damaged), or all.
    """

    @validated
    def __init__(self, every: PositiveInt | None = 100, keep: PositiveInt | Literal["all"] = 2) -> None:
        self.every, self.keep = every, keep
        self.identity: Callable[[], dict[str, str]] = dict  # of reference and data; given by the run
        self.agreed: Callable[[], object] = dict
        self.versions: dict[str, str] = {}
        self.evaluate_every: int | None = None
        self.seconds_before = 0.0  # of the run's earlier stretches
        self.saved_at: int | None = None  # optimiser steps of the last checkpoint
        self.moment: TrainState | None = None
        self._signals, self._started = StopSignals(), time.monotonic()
        self._told = False  # that the disk has no room

    def of_run(
        self,
        identity: Callable[[], dict[str, str]],
        versions: dict[str, str],
        evaluate_every: int | None,
        agreed: Callable[[], None],
    ) -> None:
        """Tell it of the run.

        Args:
            identity: what has to be the same when the run goes on; asked at the first save.
            versions: of what determines the run's numbers.
            evaluate_every: optimiser steps between evaluations; None: at the ends of epochs.
            agreed: called on the first rank once a loaded checkpoint is known to be this run's.
        """
        self.identity, self.agreed = functools.cache(identity), agreed
        self.versions, self.evaluate_every = versions, evaluate_every

    # -- the run's way

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint[OURS]
        require_same(ours["manifest"]["identity"], self.identity())
        if trainer.is_global_zero:
            self.agreed()
        require_agreement(ours["manifest"]["step"])
        note = other_versions(ours["manifest"]["versions"], self.versions)
        if note and trainer.is_global_zero:
            _say(note)
        module.restore_training_state(ours["module"])
        self.moment = TrainState(
            step=ours["manifest"]["step"],
            loops=checkpoint["loops"]["fit_loop"],
            callbacks=checkpoint["callbacks"],
            module=ours["module"],
            samples=ours["manifest"]["samples"],
            evaluate=ours["evaluate"],
        )
        self.saved_at, self.seconds_before = self.moment.step, ours["manifest"]["seconds"]

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._signals.watch()  # after Lightning has taken them for itself
        if self.moment is None:
            return
        # Lightning forgets the place in the epoch where something has asked it for the number of steps before
        for state in self.moment.loops["state_dict"].get("combined_loader", ()):
            loader: Any = trainer.train_dataloader
            loader.load_state_dict(state)
        if self.moment.evaluate and module.evaluated_at != self.moment.step:
            # the run ended before or in the evaluation that was due; Lightning would go on with the next batch
            loop = trainer.fit_loop.epoch_loop.val_loop
            trainer.validating, loop.restarting = True, False
            loop.run()
            trainer.training = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:  # every step has as many micro-batches
            self.moment = TrainState.of(trainer, module, evaluate_every=self.evaluate_every)
            if self._due(trainer):
                self.save(trainer, module)
        self._heed(trainer, module)

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if not _fits(trainer):  # the evaluations before and after training: a rank that ends alone has the others wait
            self._signals.watch()

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
        self._heed(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._heed(trainer, module)
        if not _fits(trainer):
            self._signals.release()

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._signals.release()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self._signals.release()
        # a bad number that was seen before the update has not met the weights: they are what it can be replayed with
        if self.every is not None and module.failure is not None and module.failure is module.nonfinite.caught:
            try:
                self.save(trainer, module)
            except CaldpoError as failed:  # such as a full disk: what ended the run matters more
                exception.add_note(f"The weights before that step could not be saved either: {failed}")

    # -- saving

    def save(self, trainer: pl.Trainer, module: Any) -> Path | None:
        """Save the run as it was at the end of the last optimiser step; every rank has to take part.

        Returns:
            The checkpoint's folder; None where no step of this stretch has ended yet.

        Raises:
            CaldpoError: it cannot be written, or its weights must not be saved.
        """
        if self.moment is None:
            return None
        folder = Path(trainer.default_root_dir) / FOLDER / f"step-{self.moment.step}"
        if self.saved_at == self.moment.step:
            return folder
        module.require_good_weights()
        if trainer.is_global_zero:
            for name in ("metrics.csv", SAMPLES):
                _on_disk(Path(trainer.default_root_dir) / name)
        trainer.save_checkpoint(folder, weights_only=False)  # the optimiser and all else as well
        self.saved_at = self.moment.step
        if trainer.is_global_zero and self.keep != "all":
            there = list(checkpoint_folders(Path(trainer.default_root_dir)).values())
            for old in there[: -self.keep]:
                trainer.strategy.remove_checkpoint(old)
            self._look_for_room(folder, self.keep + 1 - min(len(there), self.keep))
        return folder

    def _look_for_room(self, folder: Path, more: int) -> None:
        """Say so, once, where the disk has no room for as many checkpoints as are still to come beside those there."""
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(folder).free
        if free < more * size and not self._told:
            self._told = True
            _say(
                f"note: a checkpoint takes {size / 2**20:,.0f} MiB, and of the {more} that there has to be room for"
                f" beside those there, the {free / 2**20:,.0f} MiB left on the disk hold {free // size}: make room, or"
                " lower callbacks.checkpoint.keep"
            )

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        if self.moment is None:  # somebody else saves, in a way of his own
            return
        checkpoint["loops"]["fit_loop"] = self.moment.loops
        checkpoint["callbacks"] = self.moment.callbacks
        # an evaluation since then is done again; rows of steps that had ended have been fetched since then
        module_state = module.training_state() | {k: self.moment.module[k] for k in ("rows", "evaluated_at")}
        checkpoint[OURS] = {
            "module": module_state,
            "evaluate": self.moment.evaluate,
            "manifest": {
                "step": self.moment.step,
                "rows": self.moment.module["rows"],
                "samples": self.moment.samples,
                "seconds": self.seconds_before + time.monotonic() - self._started,
                "identity": self.identity(),
                "versions": self.versions,
            },
        }

    def _due(self, trainer: pl.Trainer) -> bool:
        if self.every is None:
            return False
        step, per_epoch = trainer.global_step, int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        epochs = trainer.max_epochs if trainer.max_steps == -1 else None
        at_end = step == (trainer.max_steps if epochs is None else epochs * per_epoch)
        return at_end or step % self.every == 0 or (trainer.is_last_batch and per_epoch > self.every)

    def _heed(self, trainer: pl.Trainer, module: Any) -> None:
        """Stop where a signal has asked for it, on any rank."""
        number = self._signals.asked()
        if number is None:
            return
        saved = self.save(trainer, module)
        if trainer.is_global_zero:
            kept = "nothing to save yet" if saved is None else f"saved in {saved}"
            _say(
                f"stopped by {signal.Signals(number).name} after {trainer.global_step} optimiser steps: {kept}\n"
                f"  to go on: python -m caldpo.train resume={trainer.default_root_dir}"
            )
        self._signals.pass_on(number)
        raise SystemExit(128 + number)


def _fits(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == pl.trainer.states.TrainerFn.FITTING


def _say(text: str) -> None:
    Console(stderr=True).print(text, soft_wrap=True, highlight=False, markup=False)


def _on_disk(path: Path) -> None:
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())
