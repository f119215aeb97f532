"""A run that is made longer: what it has in common with a run of the new length, and where its schedule changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

EXTENSIONS = "extensions"  # key of summary.json: a list of what asdict makes of these
PAST_EARLY_STOP = "early stopping had ended it there: its wait counter began at zero again"


@dataclass(frozen=True)
class Extension:
    """The place at which a run got more steps than it was planned with."""

    step: int  # optimiser steps before it
    planned_before: int
    planned: int
    lr_before: float  # learning rate of the next update by the schedule of the earlier length
    lr: float  # the same by that of the new length, which counts
    same_so_far: bool  # whether the updates up to here had the learning rates of a run of the new length
    past_early_stop: bool = False  # whether early stopping had ended the run here: it then waits anew

    @classmethod
    def of_schedule(
        cls, step: int, planned_before: int, planned: int, lr: float, factor: Callable[[int], Callable[[int], float]]
    ) -> Extension:
        """Compare two lengths of a run; ``factor(length)(step)`` is the share of ``lr`` that an update has."""
        before, now = factor(planned_before), factor(planned)
        same = all(before(done) == now(done) for done in range(step))
        return cls(step, planned_before, planned, lr * before(step), lr * now(step), same)

    def describe(self) -> str:
        """Say in one sentence what equals what."""
        place = f"made longer at step {self.step:,}, from {self.planned_before:,} to {self.planned:,} optimiser steps"
        if self.past_early_stop:
            place += f" ({PAST_EARLY_STOP})"
        if self.same_so_far:
            so_far = "up to here " if self.past_early_stop else ""
            return f"{place}: {so_far}it is the run that had {self.planned:,} from its beginning"
        if self.step >= self.planned_before:
            was = f"had brought it to {self.lr_before:.3g} at the earlier end"
        else:
            was = f"would have it at {self.lr_before:.3g} here"
        return (
            f"{place}: the learning-rate schedule changed. Up to here it is the run of {self.planned_before:,} steps,"
            f" whose schedule {was}; it continues at {self.lr:.3g}, where a run of {self.planned:,} steps has it here,"
            f" and is not the run that had {self.planned:,} from its beginning"
        )


def extension_notes(summary: Mapping[str, Any]) -> Iterator[str]:
    """Describe the extensions that ``summary.json`` records; one that was not written by :class:`Extension` is none."""
    for entry in summary.get(EXTENSIONS, ()):
        try:
            yield Extension(**entry).describe()
        except (TypeError, ValueError, OverflowError):
            yield "summary.json: an entry of extensions cannot be read"
