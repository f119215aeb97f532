"""Find callbacks that watch a held-out metric which is measured too rarely for them to act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from caldpo.checkpointing.checkpoint_callback import Checkpoints
from caldpo.utils.text_format import counted


def too_few_evaluations(
    callbacks: Mapping[str, pl.Callback], *, steps: int, steps_per_epoch: int, val_check_interval: int | None
) -> Iterator[str]:
    """Yield a sentence for each callback that cannot do anything in a run of so many optimiser steps.

    Without ``val_check_interval`` evaluations are those at the ends of epochs. One after the last step ends nothing.
    """
    count = (steps - 1) // (val_check_interval or steps_per_epoch)
    every = "null (ends of epochs)" if val_check_interval is None else val_check_interval
    why = (
        f"this run of {counted(steps, 'step')} has {counted(count, 'evaluation')} before its last step with"
        f" trainer.val_check_interval={every}; lower it"
    )
    for name, callback in callbacks.items():
        if isinstance(callback, EarlyStopping):
            needed = max(callback.patience, 1) + 1  # the first one is always the best so far
            if (callback.stopping_threshold, callback.divergence_threshold) != (None, None):
                needed = 1
            if count < needed:
                takes = f"takes {counted(needed, 'evaluation')} (patience={callback.patience})"
                yield f"callbacks.{name} cannot end training, which {takes}: {why}"
        elif isinstance(callback, Checkpoints) and callback.monitor is not None and count == 0:
            yield f"callbacks.{name}.monitor can choose no step but the last: {why}"
