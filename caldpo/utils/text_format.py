"""Numbers and tables as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from caldpo.metric_definitions import Quantity
from caldpo.report.escaping import Markdown, cell, one_line
from caldpo.report.grouping import Setting
from caldpo.report.statistics import Estimate, clear_of_others, estimate, leader

NONE = "-"
_MOST_DECIMALS = 6
_SMALLEST, _LARGEST = 1e-5, 1e9  # beyond these, powers of ten


def number(value: float) -> str:
    """Three significant digits: ``-0.0123``, ``12.3``, ``1230``, ``1.20e-08``."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{value}"
    if value != 0 and not _SMALLEST <= abs(value) < _LARGEST:
        return f"{value:.2e}"
    return f"{value:.{_decimals(value, 3)}f}"


def spread(found: Estimate | None, seeds: int | None = None) -> str:
    """``-9.83 ± 0.42``, the spread with two significant digits; ``(n=2)`` where not all ``seeds`` have it."""
    if found is None:
        return NONE
    if found.sd is None or not math.isfinite(found.sd) or found.sd == 0:
        text = number(found.mean) + (" ± 0" if found.sd == 0 else "")
    elif max(abs(found.mean), found.sd) >= _LARGEST or found.sd < _SMALLEST:
        text = f"{number(found.mean)} ± {found.sd:.1e}"
    else:
        decimals = _decimals(found.sd, 2)
        text = f"{found.mean:.{decimals}f} ± {found.sd:.{decimals}f}"
    return f"{text} (n={found.n})" if seeds is not None and found.n != seeds else text


def with_interval(value: float, low: float, high: float) -> str:
    """``0.859 [0.816, 0.898]``: as many decimals as two digits of the interval's width need.

    An interval without a width (``0.500 [0.500, 0.500]``) gives no scale; three digits of the value do. Numbers too
    small for decimals are shown in powers of ten (``2.00e-07 [1.00e-07, 3.00e-07]``).
    """
    size = max(map(abs, (value, low, high)))
    if not all(map(math.isfinite, (value, high - low))) or abs(value) >= _LARGEST or 0 < size < _SMALLEST:
        return f"{number(value)} [{number(low)}, {number(high)}]"
    decimals = _decimals(high - low, 2) if high != low else _decimals(value, 3)
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def cells(
    settings: Sequence[Setting],
    quantity: Quantity,
    mark: str = "{}",
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, str]:
    """Mean and spread of a quantity by setting's label; ``mark`` (``**{}**``) goes around a clear best.

    Args:
        settings: rows of the table.
        quantity: its column.
        mark: a format.
        intervals: within a run, by label. Shown where there is one seed; they decide where every setting has one.
    """
    found = {s.label: estimate(s.finals(quantity.final)) for s in settings}
    known: Mapping[str, Estimate] = {label: value for label, value in found.items() if value is not None}
    within = {label: ends for label, ends in (intervals or {}).items() if label in known and known[label].n == 1}
    best = None
    if quantity.better and within.keys() == known.keys():
        best = clear_of_others(within, quantity.better)
    elif quantity.better:
        best = leader(known, quantity.better)
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


def _decimals(value: float, significant: int) -> int:
    if value == 0:
        return 0
    return min(_MOST_DECIMALS, max(0, significant - 1 - math.floor(math.log10(abs(value)))))
