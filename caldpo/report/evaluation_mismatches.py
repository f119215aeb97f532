"""Where a table of evaluations compares what was not measured alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from caldpo.report.comparison_facts import finished_runs, varied
from caldpo.report.escaping import code, plain
from caldpo.report.evaluation_measures import evaluated
from caldpo.report.grouping import Setting, differences
from caldpo.report.run_files import Run
from caldpo.utils.yaml_io import flatten

_UNIT = "settings.reward_beta"
_BY_SEED = {"pairs": "held-out pairs", "reference": "references"}  # what follows from data and seed, with its name


def faults(settings: Sequence[Setting], suite: str) -> list[str]:
    """What keeps the figures of a suite from being compared, a sentence each."""
    runs = [run for setting in settings for run in evaluated(setting, suite)]
    facts = {run.name: _facts(run, suite) for run in runs}
    missing = [run for run in finished_runs(settings) if suite not in run.evaluation]
    told = [f"Not evaluated: {names(settings, missing)}."] if missing else []
    varying = differences([_settings(facts[run.name]) for run in runs])
    if varying:
        listed = "; ".join(f"{code(key)} ({', '.join(map(plain, values))})" for key, values in varying.items())
        told.append(f"Not measured alike, the evaluations differ in: {listed}.")
    if _UNIT in varying:
        told.append("Margins, calibration and slopes are in several units: evaluate all with one `reward_beta=`.")
    for key, title in _BY_SEED.items():
        seeds = [seed for seed, group in _by_seed(runs).items() if _distinct(facts[r.name].get(key) for r in group) > 1]
        if seeds:
            told.append(f"Not measured alike, runs of the same seed ({', '.join(seeds)}) had different {title}.")
    early = [run for run in runs if _is_early(facts[run.name].get("step"), run.summary.get("steps"))]
    if early:
        steps = varied(early, lambda run: facts[run.name].get("step"))
        told.append(f"Not the final policy but that of step {steps}: {names(settings, early)}.")
    return told


def reward_units(settings: Sequence[Setting], suite: str) -> set[str]:
    """The distinct ``reward_beta`` that the evaluations took."""
    found = (_settings(_facts(run, suite)).get(_UNIT) for setting in settings for run in evaluated(setting, suite))
    return {str(beta) for beta in found if beta is not None}


def names(settings: Sequence[Setting], runs: Sequence[Run]) -> str:
    """Runs by setting and seed: their folders' names may be long."""
    wanted = {run.name for run in runs}
    told = []
    for setting in settings:
        seeds = [str(run.seed) for run in setting.finished if run.name in wanted]
        if seeds:
            told.append(f"{code(setting.label)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})")
    return ", ".join(told)


def _facts(run: Run, suite: str) -> Mapping[str, Any]:
    found = run.evaluation[suite].get("determined_by")
    return found if isinstance(found, Mapping) else {}


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of suite and command, and versions, flat.

    ``checkpoint`` is left out, since the step tells what it led to.
    """
    found = flatten({part: facts.get(part, {}) for part in ("suite", "settings", "versions")})
    found.pop("settings.checkpoint", None)
    return found


def _by_seed(runs: Iterable[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str(run.seed), []).append(run)
    return groups


def _distinct(values: Iterable[object]) -> int:
    return len({str(value) for value in values if value is not None})


def _is_early(step: object, last: object) -> bool:
    return step is not None and last is not None and step != last
