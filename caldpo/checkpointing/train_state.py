"""Capture the training state at the end of each optimiser step.

Between two steps weights and optimiser do not change. A run that has to stop inside an accumulation window or an
evaluation is therefore saved as of the last step's end: what it did since then is repeated, with the same outcome. What
is small and does change is captured at each step's end.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from caldpo.checkpointing.manifest import SAMPLES

if TYPE_CHECKING:
    from caldpo.lightning_module import PreferenceModule


@dataclass(frozen=True)
class TrainState:
    """What is saved besides weights, optimiser and schedule."""

    step: int  # optimiser steps so far
    loops: dict[str, Any]  # Lightning's counters and the loader's position, see completed_loops
    callbacks: dict[str, Any]  # their states
    module: dict[str, Any]  # the training module's counters
    samples: int  # bytes of samples.jsonl
    evaluate: bool  # an evaluation of the held-out pairs is due after this step

    @classmethod
    def capture(cls, trainer: pl.Trainer, module: PreferenceModule) -> TrainState:
        """Capture the end of an optimiser step, inside ``on_train_batch_end`` of its last micro-batch."""
        callbacks = {c.state_key: copy.deepcopy(c.state_dict()) for c in trainer.callbacks}  # type: ignore[attr-defined]
        samples = Path(trainer.default_root_dir) / SAMPLES
        return cls(
            step=trainer.global_step,
            loops=completed_loops(trainer.fit_loop.state_dict(), epoch_ends=trainer.is_last_batch),
            callbacks={key: state for key, state in callbacks.items() if state},
            module=module.training_state(),
            samples=samples.stat().st_size if samples.exists() else 0,
            evaluate=_evaluation_is_due(trainer),
        )


def completed_loops(loops: dict[str, Any], *, epoch_ends: bool) -> dict[str, Any]:
    """Complete the counters of Lightning's fit loop as they are once the current batch, and its epoch, are over.

    Taken inside the hook of a batch's end they count the batch as not completed. Lightning then has to guess where it
    was, and its guesses leave out an evaluation that was due, and count an epoch that ends here in two ways.
    """
    loops = copy.deepcopy(loops)
    batch, epoch = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = optimizer["step"]["total"]["completed"]
    for count in (batch["total"], batch["current"]):
        count["completed"] = count["processed"]
    evaluation = loops["epoch_loop.val_loop.batch_progress"]  # one that is due starts from its beginning
    evaluation |= {name: dict.fromkeys(evaluation[name], 0) for name in ("total", "current")} | {"is_last_batch": False}
    if epoch_ends:  # counters within the epoch restart
        for progress in (batch, *optimizer.values(), loops["epoch_loop.scheduler_progress"]):
            progress["current"] = dict.fromkeys(progress["current"], 0)
        batch["is_last_batch"] = False
        for count in (epoch["total"], epoch["current"]):
            count["processed"] = count["completed"] = count["ready"]
    return loops


def _evaluation_is_due(trainer: pl.Trainer) -> bool:
    if trainer.check_val_every_n_epoch is not None:  # at the end of each epoch
        return trainer.is_last_batch
    every = int(trainer.val_check_interval) // trainer.accumulate_grad_batches  # Lightning counts micro-batches
    return trainer.global_step % every == 0
