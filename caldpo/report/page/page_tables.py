"""Tables of the page as plain text: final figures in the cells of ``report.md``, and settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caldpo.metric_definitions import MetricDefinition
from caldpo.report import comparison_facts as facts
from caldpo.report import shown_metrics
from caldpo.report.escaping import first_of, shorten
from caldpo.report.evaluation_results import main_metrics, own_intervals, suites_of
from caldpo.report.grouping import RunGroup, differences
from caldpo.report.statistics import estimate, mean_interval
from caldpo.report.table_cells import cells, seeds_text
from caldpo.utils.text_format import number

BEST = "★ "  # before a clear best
_NAMED = 6  # settings that have a value, the others counted
_VALUES = 12  # of a key, the others counted


@dataclass(frozen=True)
class Cell:
    """A final figure of a setting: its text as in ``report.md``, the interval of the mean, and what it sorts by."""

    text: str
    interval: str = ""
    value: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A metric of the table, with where it was measured."""

    metric: MetricDefinition
    unit: str
    source: str


def columns(groups: Sequence[RunGroup]) -> list[Column]:
    """List the metrics that any group has: held out, against the known reward, and the suites' main measures."""
    logged = [(metric, "held out") for metric in shown_metrics.HELD_OUT]
    logged += [(metric, "end of training") for metric in shown_metrics.ORACLE]
    logged += [(metric, f"suite {suite}") for suite in suites_of(groups) for metric in main_metrics(groups, suite)]
    return [
        Column(metric, facts.unit(metric, groups), source)
        for metric, source in logged
        if any(group.finals(metric.final) for group in groups)
    ]


def table_rows(groups: Sequence[RunGroup], shown: Sequence[Column]) -> list[tuple[RunGroup, str, list[Cell]]]:
    """Return a row per group: it, its seeds, and a cell per column."""
    by_column = [_cells(groups, column) for column in shown]
    return [(group, seeds_text(group), [column[group.label] for column in by_column]) for group in groups]


def _cells(groups: Sequence[RunGroup], column: Column) -> dict[str, Cell]:
    metric = column.metric
    own = own_intervals(groups, metric) if column.source.startswith("suite ") else {}
    found = {}
    by_label = {group.label: group for group in groups}
    for label, text in cells(groups, metric, f"{BEST}{{}}", own).items():
        value = estimate(by_label[label].finals(metric.final))
        ends = None if value is None else mean_interval(value)
        if ends and column.unit.startswith("share"):  # few seeds say little, but nothing beyond what a share can be
            ends = (max(0.0, ends[0]), min(1.0, ends[1]))
        interval = f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""
        sorts_by = None if value is None else value.mean
        found[label] = Cell(text.removeprefix(BEST), interval, sorts_by, text.startswith(BEST))
    return found


def settings_rows(groups: Sequence[RunGroup]) -> list[tuple[str, bool, list[tuple[str, str]], int]]:
    """Return the keys in which groups differ: key, whether it lies outside the loss, values with the groups that have
    them, and how many more values there are. That another loss lacks a key of the loss is no difference.
    """
    rows = []
    beyond = facts.unfair_differences(groups)
    keys = [key for key in differences([group.config for group in groups]) if not key.endswith("._target_")]
    for key in keys:
        having: dict[str, list[str]] = {}
        for group in groups:
            if key in group.config:
                having.setdefault(shorten(str(group.config[key]), 120), []).append(group.label)
        if key in beyond or len(having) > 1:
            named = [(text, first_of(labels, _NAMED)) for text, labels in having.items()]
            rows.append((key, key in beyond, named[:_VALUES], max(0, len(named) - _VALUES)))
    return sorted(rows, key=lambda row: not row[1])
