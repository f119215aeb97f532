"""Cells and tables of reports: mean and spread over seeds, the clear best marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from caldpo.metric_definitions import MetricDefinition
from caldpo.report.comparison_facts import unit
from caldpo.report.escaping import Markdown, cell, code
from caldpo.report.grouping import RunGroup
from caldpo.report.statistics import Estimate, clear_of_others, estimate, leader
from caldpo.utils.text_format import LARGEST, SMALLEST, decimals, number, with_interval

NONE = "-"


def spread(value: Estimate | None, seeds: int | None = None) -> str:
    """Format as ``-9.83 ± 0.42``, the spread with two significant digits; ``(n=2)`` where not all ``seeds`` have it."""
    if value is None:
        return NONE
    if value.sd is None or not math.isfinite(value.sd) or value.sd == 0:
        text = number(value.mean) + (" ± 0" if value.sd == 0 else "")
    elif max(abs(value.mean), value.sd) >= LARGEST or value.sd < SMALLEST:
        text = f"{number(value.mean)} ± {value.sd:.1e}"
    else:
        digits = decimals(value.sd, 2)
        text = f"{value.mean:.{digits}f} ± {value.sd:.{digits}f}"
    return f"{text} (n={value.n})" if seeds is not None and value.n != seeds else text


def cells(
    groups: Sequence[RunGroup],
    metric: MetricDefinition,
    mark: str = "{}",
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, str]:
    """Format mean and spread of a metric by group's label; ``mark`` (``**{}**``) goes around a clear best.

    ``intervals`` within a run, by label, are shown where there is one seed, and decide where every group has one.
    """
    estimates = {group.label: estimate(group.finals(metric.final)) for group in groups}
    known: Mapping[str, Estimate] = {label: value for label, value in estimates.items() if value is not None}
    within = {label: ends for label, ends in (intervals or {}).items() if label in known and known[label].n == 1}
    best = None
    if metric.better and within.keys() == known.keys():
        best = clear_of_others(within, metric.better)
    elif metric.better:
        best = leader(known, metric.better)
    texts = {group.label: spread(estimates[group.label], group.seeds) for group in groups}
    texts |= {label: with_interval(known[label].mean, *ends) for label, ends in within.items()}
    return {label: Markdown(mark.format(text)) if label == best else text for label, text in texts.items()}


def metrics_table(groups: Sequence[RunGroup], metrics: Sequence[MetricDefinition]) -> Markdown:
    """Lay out final figures, a row per group and a column per metric, the clear best bold."""
    columns = [cells(groups, metric, "**{}**") for metric in metrics]
    header = ["setting", "seeds", *(f"{metric.title} ({unit(metric, groups)})" for metric in metrics)]
    rows = [[code(group.label), seeds_text(group), *(column[group.label] for column in columns)] for group in groups]
    return markdown_table(header, rows)


def seeds_text(group: RunGroup, finished: int | None = None) -> str:
    """Say how many seeds finished (or ``finished``), of how many that were started where it is not all of them."""
    count = group.seeds if finished is None else finished
    return str(count) if count == group.started_seeds else f"{count} of {group.started_seeds}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> Markdown:
    """Lay out a pipe table; the columns after the first ``text_columns`` are aligned to the right.

    Cells that are not :class:`~caldpo.report.escaping.Markdown` are shown as they are written.
    """
    rules = [":--" if place < text_columns else "--:" for place in range(len(header))]
    lines = [header, rules, *rows]
    return Markdown("\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines))
