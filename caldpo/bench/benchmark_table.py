"""The outcome as a table: on the terminal, and as Markdown for ``benchmark.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.bench.benchmark_rows import Row

NONE = "-"
# speed x: times the yardstick's; memory x: times less; estimate: of the peak, and the measured peak over it
HEADERS = (
    "variant",
    "pairs/s (range)",
    "response tokens/s",
    "speed x",
    "peak MiB",
    "memory x",
    "of peak",
    "estimate MiB (measured)",
)


def cells(row: Row) -> list[str]:
    """The texts of a row, in the order of ``HEADERS``."""
    if row.pairs_per_second is None or row.peak_bytes is None:
        return [row.title, "out of memory", *[NONE] * (len(HEADERS) - 3), _estimate(row)]
    middle, lowest, highest = row.pairs_per_second
    return [
        row.title,
        f"{middle:.3g} ({lowest:.3g}-{highest:.3g})",
        _figure(row.response_tokens_per_second, ".0f"),
        _figure(row.speed, ".2f"),
        f"{row.peak_bytes / 2**20:.0f}",
        _figure(row.memory, ".2f"),
        _figure(row.peak_share, ".2f"),
        _estimate(row),
    ]


def agreement_lines(rows: Sequence[Row]) -> list[str]:
    """How far each variant's numbers are from the yardstick's."""
    return [
        f"{row.title}: loss {d.loss:.1e}, gradient norm {d.first_grad_norm:.1e} at the first step,"
        f" {d.grad_norm:.1e} at any" + (f"; NO AGREEMENT: {d.problem}" if d.problem else "")
        for row in rows
        if (d := row.difference) is not None
    ]


def reference_line(rows: Sequence[Row]) -> str:
    """What computing the reference's log-probs before training took, for the variants that do so."""
    found = [(row.title, row.reference_seconds_per_pair) for row in rows if row.reference_seconds_per_pair is not None]
    each = "; ".join(f"{title} {1000 * seconds:.3g}" for title, seconds in found)
    return f"Reference once before training, not part of the steps, ms a pair: {each or NONE}"


def print_table(console: Console, rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """Table, agreement and facts on the terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    texts = [cells(row) for row in rows]
    for place, header in enumerate(HEADERS):
        # on a narrow terminal cells and headers wrap between words
        words = " ".join([header, *(row[place] for row in texts)]).split()
        table.add_column(Text(header), justify="right" if place else "left", min_width=max(map(len, words)))
    for row in texts:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print(Text(reference_line(rows)), soft_wrap=True)
    if lines := agreement_lines(rows):
        console.print("Largest relative differences from the yardstick")
        for line in lines:
            console.print(Text(f"  {line}"), soft_wrap=True)
    for name, value in facts.items():
        console.print(Text(f"{name}: {value}"), soft_wrap=True)


def markdown(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """The same as a Markdown document."""
    lines = ["# Benchmark", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", _line(HEADERS), "|---|" + "---:|" * (len(HEADERS) - 1), *(_line(cells(row)) for row in rows)]
    lines += ["", reference_line(rows)]
    if differences := agreement_lines(rows):
        lines += ["", "Largest relative differences from the yardstick:", "", *(f"- {line}" for line in differences)]
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _estimate(row: Row) -> str:
    if row.estimated_bytes is None:
        return NONE
    measured = "" if row.of_estimate is None else f" ({row.of_estimate:.2f} of it)"
    return f"{row.estimated_bytes / 2**20:.0f}{measured}"


def _figure(value: float | None, form: str) -> str:
    return NONE if value is None else f"{value:{form}}"
