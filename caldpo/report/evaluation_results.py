"""Read the runs' ``evaluation/*.json``: measures as metrics in the files' own words, and details that figures draw.

No suite is known here but those whose details a figure draws: what has another shape is left out, and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from caldpo.evaluation.suite_base import FOLDER
from caldpo.metric_definitions import MetricDefinition
from caldpo.report.grouping import RunGroup, by_seed
from caldpo.report.run_files import Run, as_float
from caldpo.report.statistics import LARGEST

PREFIX = "evaluation"  # of measures among final metrics: ``evaluation/preference/accuracy``
Results = Mapping[str, Mapping[str, Any]]  # a run's files by suite
Interval = tuple[float, float]


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
    words = {"title": name.rpartition("/")[2], "unit": "", "meaning": ""}
    title, unit, meaning = (str(measure.get(key, absent)) for key, absent in words.items())
    better = measure.get("better")
    return MetricDefinition(name, title, unit, meaning.rstrip("."), better if better in ("higher", "lower") else None)


# ---- details


def drawable(results: Results, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Return the results without the details that no figure could draw, and without notes that are no texts.

    What was left out is added to ``notes``.
    """
    return {suite: _drawable(suite, content, notes) for suite, content in results.items()}


def _drawable(suite: str, content: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    cleaned = dict(content)
    if not _fits(_TEXTS, cleaned.get("notes") or []):
        notes.append(f"{FOLDER}/{suite}.json: its notes are no list of texts and are left out")
        cleaned["notes"] = []
    parts = cleaned.get("details")
    if parts is not None and not isinstance(parts, Mapping):
        notes.append(f"{FOLDER}/{suite}.json: its details are no mapping and are left out")
        cleaned["details"] = {}
    elif parts:
        wrong = [k for k, shape in _SHAPES.get(suite, {}).items() if parts.get(k) and not _fits(shape, parts[k])]
        for key in wrong:
            notes.append(f"{FOLDER}/{suite}.json: details.{key} has another shape than figures draw and is left out")
        cleaned["details"] = {key: value for key, value in parts.items() if key not in wrong}
    return cleaned


Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]


class ReliabilityBin(BaseModel):
    low: Number
    high: Number
    claimed: Number
    observed: Number
    count: Annotated[Number, Field(gt=0)]


class Quantiles(BaseModel):
    levels: list[Number]
    chosen: list[Number]
    rejected: list[Number]

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if not len(self.levels) == len(self.chosen) == len(self.rejected):
            raise ValueError("levels and quantiles differ in number")
        return self


class LengthBin(BaseModel):
    low: Number
    high: Number
    count: Number
    both_fell: Number


class PathPoint(BaseModel):
    step: Number | None = None
    kl: Number | None = None
    reward: Number | None = None


_TEXTS = TypeAdapter(list[str])
# what figures read of each suite's details
_SHAPES: dict[str, dict[str, TypeAdapter[Any]]] = {
    "preference": {"reliability": TypeAdapter(list[ReliabilityBin])},
    "displacement": {"log_ratios": TypeAdapter(Quantiles), "by_length": TypeAdapter(list[LengthBin])},
    "oracle": {"points": TypeAdapter(list[PathPoint])},
}


def _fits(shape: TypeAdapter[Any], value: Any) -> bool:
    try:
        shape.validate_python(value)
    except ValidationError:
        return False
    return True
