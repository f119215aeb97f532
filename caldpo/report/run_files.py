"""One run as its files tell it, and all runs of a comparison in one unit of reward."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from caldpo.config.run_lifecycle import FINISHED
from caldpo.metric_definitions import CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN
from caldpo.report.logged_curve import LoggedCurve

DEFAULT_REWARD_BETA = 0.1  # of conf/train.yaml: the unit of runs that do not have one reward_beta in common
SCALED = tuple(  # logged names whose values are in units of reward_beta
    name for metric in (CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN) for name in (metric.name, metric.held_out.name)
)


def as_float(value: float | None) -> float:
    """Convert a number out of JSON: null was not finite, and a whole number may be larger than any float."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf if value is not None and value > 0 else -math.inf


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a value of JSON or yaml is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Run:
    """A run, read from its folder; whatever its files lack is None or empty.

    ``status`` is ``finished``, ``failed``, ``interrupted``, ``running``, ``died`` (its summary says that it is running,
    and no process holds it), ``incomplete`` or ``unreadable``.
    """

    folder: Path  # absolute
    name: str  # its folder relative to the compared one
    status: str
    error: str | None  # why it did not finish
    loss: str  # the loss's option in its config group
    seed: int | None
    config: Mapping[str, Any] = field(repr=False)  # flat (``loss.beta``), interpolations kept as they are written
    resolved: Mapping[str, Any] = field(repr=False)  # the same with interpolations resolved
    overrides: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)  # the option of each config group (``model: tiny``)
    curves: Mapping[str, LoggedCurve] = field(default_factory=dict, repr=False)  # every logged metric
    final: Mapping[str, float] = field(default_factory=dict, repr=False)  # the same at the end, and every measure
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)  # summary.json
    evaluation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)  # files by suite
    notes: tuple[str, ...] = ()  # what was wrong with its files without being fatal
    job: int | None = None  # number in its sweep
    exported: bool = False  # read from a tracker's export, not from a run's folder
    reward_beta: float | None = None  # unit of ``rewards/*`` in curves and final: reward per nat of log-ratio

    @property
    def finished(self) -> bool:
        """Whether it trained to its end; only then do its figures enter a mean."""
        return self.status == FINISHED

    @functools.cached_property
    def last_step(self) -> int | None:
        """The last optimiser step that it logged."""
        return max(itertools.chain.from_iterable(self.curves.values()), default=None)

    @property
    def planned_steps(self) -> int | None:
        """Optimiser steps that it is to have, None where neither summary nor configuration says."""
        planned = self.summary.get("planned_steps")
        steps = planned if isinstance(planned, int) else self.number("trainer.max_steps")
        return int(steps) if steps is not None and math.isfinite(steps) else None

    @property
    def progress(self) -> str:
        """How far it came: ``step 12 of 20``."""
        last = "no step logged" if self.last_step is None else f"step {self.last_step:,}"
        return f"{last} of {self.planned_steps:,}" if self.planned_steps is not None else last

    def number(self, key: str) -> float | None:
        """Read a number of the resolved configuration (``loss.beta``), None where there is none."""
        value = self.resolved.get(key)
        try:
            return None if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            return None


def in_one_unit(runs: Sequence[Run]) -> list[Run]:
    """Convert ``rewards/*`` of all runs to one ``reward_beta``; what was converted or left out is in their notes.

    The conversion is exact, since an implicit reward is linear in the log-ratio.
    """
    units = {run.reward_beta for run in runs if run.reward_beta is not None and _has_rewards(run)}
    if len(units) < 2 and not any(run.reward_beta is None and _has_rewards(run) for run in runs if units):
        return list(runs)
    unit = units.pop() if len(units) == 1 else DEFAULT_REWARD_BETA
    return [_converted(run, unit) if _has_rewards(run) else run for run in runs]


def _has_rewards(run: Run) -> bool:
    return any(name in run.final or name in run.curves for name in SCALED)


def _converted(run: Run, unit: float) -> Run:
    if run.reward_beta == unit:
        return run
    if run.reward_beta is None:
        note = "its reward_beta is not known, and with it not the unit of its rewards: they are left out"
        curves = {name: curve for name, curve in run.curves.items() if name not in SCALED}
        final = {name: value for name, value in run.final.items() if name not in SCALED}
    else:
        factor = unit / run.reward_beta
        curves = {name: curve.times(factor) if name in SCALED else curve for name, curve in run.curves.items()}
        final = {name: value * factor if name in SCALED else value for name, value in run.final.items()}
        note = f"rewards/* were logged with reward_beta {run.reward_beta:g} and are converted to {unit:g}"
    return replace(run, curves=curves, final=final, notes=(*run.notes, note), reward_beta=unit)
