"""What was compared, in words: taken from the runs' own files, and saying so where runs differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from caldpo.metric_definitions import REWARD_UNIT, MetricDefinition
from caldpo.report.grouping import Setting
from caldpo.report.run_files import Run, is_number
from caldpo.utils.yaml_io import flatten

OWN_BETA = "implicit_reward_beta"  # of summary.json: reward per nat of log-ratio by the loss's own derivation

# Parts of the configuration in which settings of a comparison of losses are meant to differ.
LOSS_KEYS = ("loss", "loss_name", "reward_beta")


def finished_runs(settings: Iterable[Setting]) -> list[Run]:
    """Every run whose figures count."""
    return [run for setting in settings for run in setting.finished]


def unfinished_runs(settings: Iterable[Setting]) -> list[Run]:
    """Every other run."""
    return [run for setting in settings for run in setting.runs if not run.finished]


def varied(runs: Iterable[Run], read: Callable[[Run], Any], limit: int = 4) -> str | None:
    """What ``read`` finds in the runs: one value, or the distinct ones joined; None where there is none."""
    found = [value for run in runs if (value := read(run)) is not None]
    return _joined(found, limit) if found else None


def choice(runs: Iterable[Run], group: str) -> str | None:
    """The option of a config group, else the name of its target."""

    def read(run: Run) -> Any:
        return run.choices.get(group) or str(run.resolved.get(f"{group}._target_", "")).rpartition(".")[2]

    return varied(runs, read)


def steps(runs: Iterable[Run]) -> str | None:
    """Optimiser steps, as the summary says or as the last row of metrics shows."""
    return varied(runs, lambda run: run.summary.get("steps", run.last_step))


def headline(settings: Sequence[Setting]) -> str:
    """Data, model and steps on one line, for titles."""
    runs = finished_runs(settings)
    parts = {"data": choice(runs, "data"), "model": choice(runs, "model")}
    said = [f"{name} {value if len(value) <= 60 else value[:57] + '...'}" for name, value in parts.items() if value]
    return " · ".join([*said, f"{steps(runs) or 'unknown'} steps"])


def seeds_text(settings: Sequence[Setting]) -> str:
    """Over how many seeds means are taken."""
    return count_text(setting.seeds for setting in settings)


def count_text(counts: Iterable[int]) -> str:
    """The same from the number of each setting's seeds."""
    distinct = sorted(set(counts))
    if distinct == [1]:
        return "1 seed"
    if len(distinct) == 1:
        return f"mean over {distinct[0]} seeds"
    return f"mean over {distinct[0]} to {distinct[-1]} seeds"


def reward_unit(settings: Iterable[Setting]) -> str:
    """The unit of rewards: ``0.1 x nats``; runs have one in common since they were read."""
    betas = {run.reward_beta for run in finished_runs(settings)} - {None}
    return REWARD_UNIT if len(betas) != 1 else f"{betas.pop():g} x nats"


def unit(metric: MetricDefinition, settings: Iterable[Setting]) -> str:
    """The unit of a metric in a comparison of these settings."""
    return reward_unit(settings) if metric.unit == REWARD_UNIT else metric.unit


def unit_text(runs: Iterable[Run]) -> str | None:
    """What ``rewards/*`` are, in a sentence; None where no run says."""
    betas = {run.reward_beta for run in runs} - {None}
    if len(betas) != 1:
        return None
    return f"{betas.pop():g} x log-ratio (nats, summed over tokens), the same for every loss: reward_beta"


def own_reward(setting: Setting) -> str | None:
    """What the loss's own derivation calls the implicit reward of a response, where it is a multiple of a log-ratio."""
    betas = {run.summary.get(OWN_BETA) for run in setting.finished}
    known = {beta for beta in betas if is_number(beta)}
    return f"{known.pop():g} x log-ratio" if len(known) == len(betas) == 1 else None


def shared_facts(runs: Sequence[Run], part: str) -> dict[str, str]:
    """Plain entries of a part of ``summary.json`` (``versions``), flat; values that differ are all named."""
    entries = [flatten(run.summary.get(part, {})) for run in runs]
    keys = dict.fromkeys(key for found in entries for key, value in found.items() if _is_plain(value))
    return {key: _joined(found[key] for found in entries if key in found) for key in keys}


def unfair_differences(differing: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Of the configuration keys in which settings differ, those outside the loss."""
    return {
        key: values
        for key, values in differing.items()
        if not any(key == part or key.startswith(f"{part}.") for part in LOSS_KEYS)
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and "\n" not in str(value)


def _joined(values: Iterable[Any], limit: int = 4) -> str:
    distinct = list(dict.fromkeys(map(str, values)))
    return ", ".join(distinct[:limit]) + (f" and {len(distinct) - limit} more" if len(distinct) > limit else "")
