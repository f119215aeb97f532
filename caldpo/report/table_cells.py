"""Cells and tables of reports: mean and spread over seeds, the clear best marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from caldpo.metric_definitions import MetricDefinition
from caldpo.report.escaping import Markdown, cell, one_line
from caldpo.report.grouping import Setting
from caldpo.report.statistics import Estimate, clear_of_others, estimate, leader
from caldpo.utils.text_format import LARGEST, SMALLEST, decimals, number, with_interval

NONE = "-"


def spread(found: Estimate | None, seeds: int | None = None) -> str:
    """``-9.83 ± 0.42``, the spread with two significant digits; ``(n=2)`` where not all ``seeds`` have it."""
    if found is None:
        return NONE
    if found.sd is None or not math.isfinite(found.sd) or found.sd == 0:
        text = number(found.mean) + (" ± 0" if found.sd == 0 else "")
    elif max(abs(found.mean), found.sd) >= LARGEST or found.sd < SMALLEST:
        text = f"{number(found.mean)} ± {found.sd:.1e}"
    else:
        digits = decimals(found.sd, 2)
        text = f"{found.mean:.{digits}f} ± {found.sd:.{digits}f}"
    return f"{text} (n={found.n})" if seeds is not None and found.n != seeds else text


def cells(
    settings: Sequence[Setting],
    metric: MetricDefinition,
    mark: str = "{}",
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, str]:
    """Mean and spread of a metric by setting's label; ``mark`` (``**{}**``) goes around a clear best.

    Args:
        settings: rows of the table.
        metric: its column.
        mark: a format.
        intervals: within a run, by label. Shown where there is one seed; they decide where every setting has one.
    """
    found = {s.label: estimate(s.finals(metric.final)) for s in settings}
    known: Mapping[str, Estimate] = {label: value for label, value in found.items() if value is not None}
    within = {label: ends for label, ends in (intervals or {}).items() if label in known and known[label].n == 1}
    best = None
    if metric.better and within.keys() == known.keys():
        best = clear_of_others(within, metric.better)
    elif metric.better:
        best = leader(known, metric.better)
    texts = {s.label: spread(found[s.label], s.seeds) for s in settings}
    texts |= {label: with_interval(known[label].mean, *ends) for label, ends in within.items()}
    return {label: Markdown(mark.format(text)) if label == best else text for label, text in texts.items()}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> Markdown:
    """A pipe table; the columns after the first ``text_columns`` are aligned to the right.

    Cells that are not :class:`~caldpo.report.escaping.Markdown` are shown as they are written.
    """
    rules = [":--" if place < text_columns else "--:" for place in range(len(header))]
    lines = [header, rules, *rows]
    return Markdown("\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines))


def shorten(text: str, limit: int = 300) -> str:
    """Text on one line, cut to ``limit`` characters."""
    line = one_line(text)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
