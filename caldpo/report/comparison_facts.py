"""State what was compared: taken from the runs' own files, and saying so where runs differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from caldpo.metric_definitions import REWARD_UNIT, MetricDefinition
from caldpo.report.escaping import first_of, shorten
from caldpo.report.grouping import RunGroup, differences, is_within
from caldpo.report.run_files import Run, is_number
from caldpo.utils.yaml_io import flatten

OWN_BETA = "implicit_reward_beta"  # of summary.json: reward per nat of log-ratio by the loss's own derivation

# Parts of the configuration in which groups of a comparison of losses are meant to differ.
LOSS_KEYS = ("loss", "loss_name", "reward_beta")


def finished_runs(groups: Iterable[RunGroup]) -> list[Run]:
    """List every run whose figures count."""
    return [run for group in groups for run in group.finished]


def varied(runs: Iterable[Run], read: Callable[[Run], Any], limit: int = 4) -> str | None:
    """Read a value of all runs: the one they share, or the distinct ones joined; None where there is none."""
    values = [str(value) for run in runs if (value := read(run)) is not None]
    return first_of(list(dict.fromkeys(values)), limit) if values else None


def choice(runs: Iterable[Run], config_group: str) -> str | None:
    """Return the option of a config group, else the name of its target."""

    def read(run: Run) -> Any:
        return run.choices.get(config_group) or str(run.resolved.get(f"{config_group}._target_", "")).rpartition(".")[2]

    return varied(runs, read)


def steps(runs: Iterable[Run]) -> str | None:
    """Return the optimiser steps, as the summary says or as the last row of metrics shows."""
    return varied(runs, lambda run: run.summary.get("steps", run.last_step))


def headline(groups: Sequence[RunGroup]) -> str:
    """Put data, model and steps on one line, for titles."""
    runs = finished_runs(groups)
    parts = [f"{name} {shorten(value, 60)}" for name in ("data", "model") if (value := choice(runs, name))]
    return " · ".join([*parts, f"{steps(runs) or 'unknown'} steps"])


def count_text(counts: Iterable[int]) -> str:
    """Say over how many seeds means are taken, of each group's number of them."""
    distinct = sorted(set(counts))
    if distinct == [1]:
        return "1 seed"
    return f"mean over {' to '.join(map(str, sorted({distinct[0], distinct[-1]})))} seeds"


def reward_unit(groups: Iterable[RunGroup]) -> str:
    """Return the unit of rewards: ``0.1 x nats``; runs have one in common since they were read."""
    betas = {run.reward_beta for run in finished_runs(groups)} - {None}
    return REWARD_UNIT if len(betas) != 1 else f"{betas.pop():g} x nats"


def unit(metric: MetricDefinition, groups: Iterable[RunGroup]) -> str:
    """Return the unit of a metric in a comparison of these groups."""
    return reward_unit(groups) if metric.unit == REWARD_UNIT else metric.unit


def own_reward(group: RunGroup) -> str | None:
    """Return the implicit reward by the loss's own derivation, where it is a multiple of a log-ratio."""
    betas = {run.summary.get(OWN_BETA) for run in group.finished}
    known = {beta for beta in betas if is_number(beta)}
    return f"{known.pop():g} x log-ratio" if len(known) == len(betas) == 1 else None


def shared_facts(runs: Sequence[Run], part: str) -> dict[str, str]:
    """Return plain entries of a part of ``summary.json`` (``versions``), flat; values that differ are all named."""
    entries = [flatten(run.summary.get(part, {})) for run in runs]
    keys = dict.fromkeys(key for entry in entries for key, value in entry.items() if _is_plain(value))
    values = {key: dict.fromkeys(str(entry[key]) for entry in entries if key in entry) for key in keys}
    return {key: first_of(list(distinct), 4) for key, distinct in values.items()}


def unfair_differences(groups: Sequence[RunGroup]) -> dict[str, list[Any]]:
    """List the configuration keys outside the loss in which groups differ, with their distinct values."""
    differing = differences([group.config for group in groups])
    return {key: values for key, values in differing.items() if not is_within(key, LOSS_KEYS)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and "\n" not in str(value)
