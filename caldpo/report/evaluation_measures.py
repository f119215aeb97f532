"""What the runs' ``evaluation/*.json`` say: measures as metric definitions in the files' words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caldpo.metric_definitions import MetricDefinition
from caldpo.report.grouping import Setting, by_seed
from caldpo.report.run_files import Run, as_float

PREFIX = "evaluation"  # of measures among final metrics: ``evaluation/preference/accuracy``
Results = Mapping[str, Mapping[str, Any]]  # a run's files by suite
Interval = tuple[float, float]


def final_values(results: Results) -> dict[str, float]:
    """Every measure's value under ``evaluation/SUITE/MEASURE``; JSON's null is not a number."""
    return {
        f"{PREFIX}/{suite}/{name}": as_float(measure.get("value"))
        for suite, content in results.items()
        for name, measure in _measures(content)
    }


def evaluated(setting: Setting, suite: str) -> list[Run]:
    """The runs of a setting whose figures count and that were evaluated by ``suite``."""
    return [run for run in setting.finished if suite in run.evaluation]


def evaluated_seeds(setting: Setting, suite: str) -> int:
    """Number of independent seeds among them."""
    return len(by_seed(evaluated(setting, suite)))


def suites_of(settings: Sequence[Setting]) -> list[str]:
    """The suites by which any finished run was evaluated."""
    return sorted({suite for setting in settings for run in setting.finished for suite in run.evaluation})


def main_metrics(settings: Sequence[Setting], suite: str) -> list[MetricDefinition]:
    """The main measures of a suite, in the order of its files, with the titles and meanings that they give."""
    found: dict[str, MetricDefinition] = {}
    for run in (run for setting in settings for run in evaluated(setting, suite)):
        for name, measure in _measures(run.evaluation[suite]):
            if measure.get("main"):
                found.setdefault(name, _main_metric(f"{PREFIX}/{suite}/{name}", measure))
    return list(found.values())


def own_intervals(settings: Sequence[Setting], metric: MetricDefinition) -> dict[str, Interval]:
    """Interval of a measure within its one run, by label of the settings that have one run with it."""
    _, suite, name = metric.name.split("/", 2)
    found = {}
    for setting in settings:
        measures = [dict(_measures(run.evaluation[suite])).get(name) for run in evaluated(setting, suite)]
        known = [measure for measure in measures if measure is not None]
        if len(known) == 1 and _has_interval(known[0]):
            found[setting.label] = as_float(known[0]["low"]), as_float(known[0]["high"])
    return found


def details(run: Run, suite: str) -> Mapping[str, Any]:
    """Curves and distributions that a suite left for figures, empty where the run was not evaluated by it."""
    found = run.evaluation.get(suite, {}).get("details")
    return found if isinstance(found, Mapping) else {}


def _measures(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, measure in content["measures"].items():
        if isinstance(measure, Mapping) and isinstance(measure.get("value"), int | float | None):
            yield name, measure


def _has_interval(measure: Mapping[str, Any]) -> bool:
    return all(isinstance(measure.get(end), int | float) for end in ("low", "high"))


def _main_metric(key: str, measure: Mapping[str, Any]) -> MetricDefinition:
    better = measure.get("better")
    return MetricDefinition(
        key,
        str(measure.get("title", key.rpartition("/")[2])),
        str(measure.get("unit", "")),
        str(measure.get("meaning", "")).rstrip("."),
        better if better in ("higher", "lower") else None,
    )
