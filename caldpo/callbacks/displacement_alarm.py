"""Raise an alarm when held-out chosen responses become less and less likely: likelihood displacement.

A preference loss can widen its margin by lowering both responses' log-probs, the rejected one's faster. The chosen
log-ratio then falls below zero, which is the reference, and where the probability goes nothing in the loss says
(Pal et al. 2024, arXiv 2402.13228; Razin et al. 2024, arXiv 2410.08847).
"""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from caldpo.callbacks.callback_base import RunCallback
from caldpo.config.bounds import NonNegative, NonNegativeInt
from caldpo.config.signatures import validated
from caldpo.lightning_module import PreferenceModule
from caldpo.metric_definitions import CHOSEN_LOG_RATIO, DISPLACEMENT, REJECTED_LOG_RATIO
from caldpo.utils.stream_console import Console

CHOSEN, REJECTED, SHARE = (m.held_out.name for m in (CHOSEN_LOG_RATIO, REJECTED_LOG_RATIO, DISPLACEMENT))


class Point(NamedTuple):
    """Held-out log-ratios at an evaluation, nats, and the share of pairs whose chosen response fell."""

    step: int
    chosen: float
    rejected: float
    share: float


class DisplacementAlarm(RunCallback):
    """Raises an alarm when the chosen log-ratio has been falling; another one only after it was back at 0.

    The alarms go to the terminal, to W&B as an alert, and into ``summary.json``. A resumed run does not repeat them,
    unless it was stopped right after the evaluation that raised one: that is done again.

    Args:
        evaluations: of the held-out pairs in a row at which it has fallen. 0 switches the alarm off.
        below: how far below zero it has to have fallen, nats.
    """

    @validated
    def __init__(self, evaluations: NonNegativeInt = 2, below: NonNegative = 1.0) -> None:
        super().__init__()
        self.evaluations, self.below = evaluations, below
        self.points: list[Point] = []  # the last evaluations, as many as are looked at
        self.raised = False

    def on_validation_end(self, trainer: pl.Trainer, module: PreferenceModule) -> None:  # type: ignore[override]
        metrics = module.latest
        if not self.evaluations or not {CHOSEN, REJECTED} <= metrics.keys():
            return
        step = module.global_step
        point = Point(step, metrics[CHOSEN], metrics[REJECTED], metrics[SHARE])
        earlier = [p for p in self.points if p.step < step]  # a step that is evaluated again counts once
        self.points = [*earlier, point][-self.evaluations - 1 :]
        if point.chosen >= 0:
            self.raised = False
        if self.raised or not self._is_falling():
            return
        self.raised = True
        text = self._describe()
        self.alarms.append(
            {
                "alarm": "displacement",
                "step": step,
                "steps": [p.step for p in self.points],
                "log_ratios/chosen": [p.chosen for p in self.points],
                "log_ratios/rejected": [p.rejected for p in self.points],
                "text": text,
            }
        )
        if not trainer.is_global_zero:
            return
        Console().print(f"[bold yellow]alarm:[/bold yellow] {text}", soft_wrap=True, highlight=False)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                with contextlib.suppress(Exception):  # an error of the tracker does not stop training
                    logger.experiment.alert(title="likelihood displacement", text=text, level="WARN")

    def state_dict(self) -> dict[str, Any]:
        return {"points": [list(p) for p in self.points], "raised": self.raised, "alarms": list(self.alarms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = [Point(*values) for values in state_dict["points"]]
        self.raised, self.alarms = bool(state_dict["raised"]), list(state_dict["alarms"])

    def _is_falling(self) -> bool:
        """Whether the chosen log-ratio fell at each of the last evaluations, and lies far enough below zero."""
        if len(self.points) <= self.evaluations or not self.points[-1].chosen < -self.below:
            return False
        return all(after.chosen < before.chosen for before, after in pairwise(self.points))

    def _describe(self) -> str:
        first, last = self.points[0], self.points[-1]
        values = ", ".join(f"{p.chosen:+.2f}" for p in self.points)
        steps = ", ".join(str(p.step) for p in self.points)
        margins = f"{first.chosen - first.rejected:.2f} to {last.chosen - last.rejected:.2f}"
        return (
            f"held-out chosen responses become less and less likely: their log-ratio is {values} nats at steps {steps},"
            f" and {last.share:.0%} of them are less likely than under the reference, while the margin went from"
            f" {margins} nats (likelihood displacement). Read samples.jsonl to see what takes their place; a calibrated"
            " loss (loss=cal_dpo), a larger loss.beta or a lower optim.lr holds the chosen responses up."
            " Falling is not yet failing: judge by what the policy writes."
        )
