"""One run as its files tell it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from caldpo.config.run_lifecycle import DIED, FINISHED, INTERRUPTED, RUNNING

__all__ = [
    "DIED",
    "FINISHED",
    "INCOMPLETE",
    "INTERRUPTED",
    "RUNNING",
    "UNREADABLE",
    "Curve",
    "Run",
    "as_float",
    "is_number",
]

Curve = Mapping[int, float]  # optimiser step -> value

INCOMPLETE = "incomplete"  # no readable summary
UNREADABLE = "unreadable"  # something in its files that nobody foresaw


def as_float(value: float | None) -> float:
    """A number out of JSON: null was not finite, and a whole number may be larger than any float."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf if value is not None and value > 0 else -math.inf


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of JSON or yaml is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Run:
    """A run, read from its folder; whatever its files lack is None or empty.

    Attributes:
        folder: where it lies, absolute.
        name: its folder relative to what is compared.
        status: ``finished``, ``failed``, ``interrupted``, ``running``, ``died`` (its summary says that it is running,
            and nobody runs it), ``incomplete`` or ``unreadable``.
        error: why it did not finish.
        loss: the loss's option in its config group.
        config: the composed configuration, flat (``loss.beta``), interpolations kept as they are written.
        resolved: the same with interpolations resolved.
        overrides: what was given on the command line.
        choices: the option chosen in each config group (``model: tiny``).
        curves: every logged metric over optimiser steps.
        final: every logged metric at the end, and every measure of ``evaluation``.
        summary: ``summary.json`` as it is.
        evaluation: the contents of ``evaluation/*.json`` by suite.
        notes: what was wrong with its files without being fatal.
        job: number of the run in its sweep.
        reward_beta: unit of ``rewards/*`` in ``curves`` and ``final``: reward per nat of log-ratio; None where unknown.
    """

    folder: Path
    name: str
    status: str
    error: str | None
    loss: str
    seed: int | None
    config: Mapping[str, Any] = field(repr=False)
    resolved: Mapping[str, Any] = field(repr=False)
    overrides: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict, repr=False)
    final: Mapping[str, float] = field(default_factory=dict, repr=False)
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)
    evaluation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    job: int | None = None
    reward_beta: float | None = None

    @property
    def finished(self) -> bool:
        """Whether it trained to its end; only then do its figures enter a mean."""
        return self.status == FINISHED

    @property
    def last_step(self) -> int | None:
        """The last optimiser step that it logged."""
        return max((step for curve in self.curves.values() for step in curve), default=None)

    @property
    def planned_steps(self) -> int | None:
        """Optimiser steps that it is to have, None where neither summary nor configuration says."""
        said = self.summary.get("planned_steps")
        wanted = said if isinstance(said, int) else self.number("trainer.max_steps")
        return int(wanted) if wanted is not None and math.isfinite(wanted) else None

    @property
    def progress(self) -> str:
        """How far it came: ``step 12 of 20``."""
        last = "no step logged" if self.last_step is None else f"step {self.last_step:,}"
        return f"{last} of {self.planned_steps:,}" if self.planned_steps is not None else last

    def number(self, key: str) -> float | None:
        """A number of the resolved configuration (``loss.beta``), or None where there is none."""
        value = self.resolved.get(key)
        try:
            return None if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
