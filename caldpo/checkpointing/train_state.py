"""A place between two optimiser steps at which a run can go on.

Between two steps the weights and the optimiser do not change. So a run that has to stop inside an accumulation window
or an evaluation is saved as it was at the last step's end: what it did since then is done again, with the same outcome.
What is small and does change is remembered at each step's end.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from caldpo.checkpointing.manifest import SAMPLES


@dataclass(frozen=True)
class TrainState:
    """What is saved beside weights, optimiser and schedule.

    Args:
        step: optimiser steps so far.
        loops: Lightning's counters and the loader's place, settled (see :func:`settled`).
        callbacks: their states.
        module: the training module's own counters.
        samples: bytes of ``samples.jsonl``.
        evaluate: whether the held-out pairs are due to be evaluated here.
    """

    step: int
    loops: dict[str, Any]
    callbacks: dict[str, Any]
    module: dict[str, Any]
    samples: int
    evaluate: bool

    @classmethod
    def of(cls, trainer: pl.Trainer, module: Any, *, evaluate_every: int | None) -> TrainState:
        """The end of an optimiser step, inside ``on_train_batch_end`` of its last micro-batch.

        Args:
            trainer: of the run.
            module: the training module.
            evaluate_every: optimiser steps between evaluations; None: at the end of each epoch.
        """
        step, ends = trainer.global_step, trainer.is_last_batch
        callbacks = {c.state_key: copy.deepcopy(c.state_dict()) for c in _all_callbacks(trainer)}
        samples = Path(trainer.default_root_dir) / SAMPLES
        return cls(
            step=step,
            loops=settled(trainer.fit_loop.state_dict(), epoch_ends=ends),
            callbacks={key: state for key, state in callbacks.items() if state},
            module=module.training_state(),
            samples=samples.stat().st_size if samples.exists() else 0,
            evaluate=ends if evaluate_every is None else step % evaluate_every == 0,
        )


def settled(loops: dict[str, Any], *, epoch_ends: bool) -> dict[str, Any]:
    """The counters of Lightning's training loop as they are when the batch at hand, and maybe its epoch, is over.

    Taken inside the hook of a batch's end they say that the batch is not completed. Lightning then has to guess where
    it was, and its guesses leave out an evaluation that was due, and count an epoch that ends here in two ways.
    """
    loops = copy.deepcopy(loops)
    batch, epoch = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = optimizer["step"]["total"]["completed"]
    for count in (batch["total"], batch["current"]):
        count["completed"] = count["processed"]
    evaluation = loops["epoch_loop.val_loop.batch_progress"]  # one that is due is run from its beginning
    evaluation |= {name: dict.fromkeys(evaluation[name], 0) for name in ("total", "current")} | {"is_last_batch": False}
    if epoch_ends:  # what counts within the epoch begins anew
        for progress in (batch, *optimizer.values(), loops["epoch_loop.scheduler_progress"]):
            progress["current"] = dict.fromkeys(progress["current"], 0)
        batch["is_last_batch"] = False
        for count in (epoch["total"], epoch["current"]):
            count["processed"] = count["completed"] = count["ready"]
    return loops


def _all_callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
