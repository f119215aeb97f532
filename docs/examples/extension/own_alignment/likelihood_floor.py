"""Stop a run whose chosen responses have become much less likely than under the reference."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from caldpo.callbacks.callback_base import RunCallback
from caldpo.config.bounds import Finite
from caldpo.config.signatures import validated


class LikelihoodFloor(RunCallback):
    """Ends training at the first evaluation whose chosen log-ratio is below ``floor``; any callback of Lightning does.

    Args:
        floor: mean log-ratio of the held-out chosen responses, nats.
    """

    @validated
    def __init__(self, floor: Finite = -10.0) -> None:
        super().__init__()
        self.floor = floor

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        chosen = module.latest["val/log_ratios/chosen"]  # by its logged name, see docs/metrics.md
        if module.global_step and chosen < self.floor and not trainer.should_stop:
            text = f"stopped after {module.global_step} steps: chosen log-ratio {chosen:.2f}, floor {self.floor:g} nats"
            self.alarms.append({"alarm": "likelihood_floor", "step": module.global_step, "text": text})  # summary.json
            trainer.should_stop = True
