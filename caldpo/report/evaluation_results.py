"""Read the runs' ``evaluation/*.json``: measures as metrics in the files' own words, and details that figures draw.

No suite is known here but those whose details a figure draws: what has another shape is left out, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from caldpo.evaluation.suite_base import FOLDER
from caldpo.metric_definitions import MetricDefinition
from caldpo.report.grouping import RunGroup, by_seed
from caldpo.report.run_files import Run, as_float, is_number
from caldpo.report.statistics import LARGEST

PREFIX = "evaluation"  # of measures among final metrics: ``evaluation/preference/accuracy``
Results = Mapping[str, Mapping[str, Any]]  # a run's files by suite
Interval = tuple[float, float]
Check = Callable[[Any], bool]


# ---- measures


def final_values(results: Results) -> dict[str, float]:
    """Name every measure's value ``evaluation/SUITE/MEASURE``; JSON's null is not a number."""
    return {
        f"{PREFIX}/{suite}/{name}": as_float(measure.get("value"))
        for suite, content in results.items()
        for name, measure in _measures(content)
    }


def suites_of(groups: Sequence[RunGroup]) -> list[str]:
    """List the suites by which any finished run was evaluated."""
    return sorted({suite for group in groups for run in group.finished for suite in run.evaluation})


def evaluated(group: RunGroup, suite: str) -> list[Run]:
    """List the finished runs of a group that were evaluated by ``suite``."""
    return [run for run in group.finished if suite in run.evaluation]


def evaluated_seeds(group: RunGroup, suite: str) -> int:
    """Count the independent seeds among them."""
    return len(by_seed(evaluated(group, suite)))


def main_metrics(groups: Sequence[RunGroup], suite: str) -> list[MetricDefinition]:
    """List the main measures of a suite, in the order of its files, with the titles and meanings that they give."""
    metrics: dict[str, MetricDefinition] = {}
    for run in (run for group in groups for run in evaluated(group, suite)):
        for name, measure in _measures(run.evaluation[suite]):
            if measure.get("main"):
                metrics.setdefault(name, _metric(f"{PREFIX}/{suite}/{name}", measure))
    return list(metrics.values())


def own_intervals(groups: Sequence[RunGroup], metric: MetricDefinition) -> dict[str, Interval]:
    """Interval of a measure within its one run, by label of the groups that have one run with it."""
    _, suite, name = metric.name.split("/", 2)
    intervals = {}
    for group in groups:
        in_runs = [dict(_measures(run.evaluation[suite])).get(name) for run in evaluated(group, suite)]
        measures = [measure for measure in in_runs if measure is not None]
        if len(measures) == 1 and has_interval(measures[0]):
            intervals[group.label] = as_float(measures[0]["low"]), as_float(measures[0]["high"])
    return intervals


def has_interval(measure: Mapping[str, Any]) -> bool:
    """Tell whether a measure has both ends of an interval."""
    return all(isinstance(measure.get(end), int | float) for end in ("low", "high"))


def details(run: Run, suite: str) -> Mapping[str, Any]:
    """Return the curves and distributions of a suite for figures, empty where the run was not evaluated by it."""
    parts = run.evaluation.get(suite, {}).get("details")
    return parts if isinstance(parts, Mapping) else {}


def _measures(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, measure in content["measures"].items():
        if isinstance(measure, Mapping) and isinstance(measure.get("value"), int | float | None):
            yield name, measure


def _metric(name: str, measure: Mapping[str, Any]) -> MetricDefinition:
    better = measure.get("better")
    return MetricDefinition(
        name,
        str(measure.get("title", name.rpartition("/")[2])),
        str(measure.get("unit", "")),
        str(measure.get("meaning", "")).rstrip("."),
        better if better in ("higher", "lower") else None,
    )


# ---- details


def drawable(results: Results, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Return the results without the details that no figure could draw, and without notes that are no texts.

    Args:
        results: a run's ``evaluation/*.json`` by suite.
        notes: takes what was left out, a phrase an entry, with the file's name.
    """
    return {suite: _drawable(suite, content, notes) for suite, content in results.items()}


def _drawable(suite: str, content: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    cleaned = dict(content)
    if not _is_list_of(_is_text)(cleaned.get("notes") or []):
        notes.append(f"{FOLDER}/{suite}.json: its notes are no list of texts and are left out")
        cleaned["notes"] = []
    parts = cleaned.get("details")
    if parts is not None and not isinstance(parts, Mapping):
        notes.append(f"{FOLDER}/{suite}.json: its details are no mapping and are left out")
        cleaned["details"] = {}
    elif parts:
        wrong = [key for key, fits in _SHAPES.get(suite, {}).items() if parts.get(key) and not fits(parts[key])]
        for key in wrong:
            notes.append(f"{FOLDER}/{suite}.json: details.{key} has another shape than figures draw and is left out")
        cleaned["details"] = {key: value for key, value in parts.items() if key not in wrong}
    return cleaned


def _is_number(value: Any) -> bool:
    return is_number(value) and abs(as_float(value)) <= LARGEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(fits: Check) -> Check:
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str) and all(map(fits, value))


def _has_numbers(*names: str) -> Check:
    return lambda value: isinstance(value, Mapping) and all(_is_number(value.get(name)) for name in names)


def _is_bin(value: Any) -> bool:
    """Of a reliability diagram: one that holds pairs."""
    return _has_numbers("low", "high", "claimed", "observed", "count")(value) and bool(value["count"] > 0)


def _are_quantiles(value: Any) -> bool:
    names = ("levels", "chosen", "rejected")
    if not isinstance(value, Mapping) or not all(_is_list_of(_is_number)(value.get(name)) for name in names):
        return False
    return len({len(value[name]) for name in names}) == 1


def _is_point(value: Any) -> bool:
    """Of a path over checkpoints: figures that were not measured may be missing."""
    return isinstance(value, Mapping) and all(
        value.get(name) is None or _is_number(value[name]) for name in ("step", "kl", "reward")
    )


# what figures read of each suite's details
_SHAPES: dict[str, dict[str, Check]] = {
    "preference": {"reliability": _is_list_of(_is_bin)},
    "displacement": {
        "log_ratios": _are_quantiles,
        "by_length": _is_list_of(_has_numbers("low", "high", "count", "both_fell")),
    },
    "oracle": {"points": _is_list_of(_is_point)},
}
