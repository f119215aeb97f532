"""The table of a comparison of two builds: medians over the rounds, ratios, targets."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.bench.benchmark_report import device_name
from caldpo.bench.benchmark_settings import BenchmarkSettings
from caldpo.bench.build_rows import BuildRow, Figures, Target
from caldpo.report.table_cells import NONE, markdown_table
from caldpo.utils.text_format import number

HEADERS = ("row", "figure", "baseline", "this build", "ratio", "target", "reached")


@dataclass(frozen=True)
class BuildLine:
    """A figure of a row, medians over the rounds; None where a build has none."""

    row: str
    figure: str
    baseline: float | None
    this: float | None
    ratio: float | None  # of this build's to the baseline's, the median of the rounds' ratios
    target: str | None = None
    compared: float | None = None  # the quantity that the target bounds
    reached: bool | None = None  # None: no target, or nothing measured


def build_lines(
    rows: Mapping[str, BuildRow], figures: Mapping[str, Mapping[str, Sequence[Figures]]]
) -> list[BuildLine]:
    """Make one line for each figure of each row.

    Args:
        rows: by name.
        figures: by row, build (``baseline`` and ``this``) and round.
    """
    differences = {name: _beyond(row, figures, name) for name, row in rows.items()}
    lines = []
    for name, row in rows.items():
        baseline, own = differences[name]
        names = list(dict.fromkeys(figure for values in (*baseline, *own, row.targets) for figure in values))
        for figure in names:
            before = [values[figure] for values in baseline if figure in values]
            after = [values[figure] for values in own if figure in values]
            both = [(y[figure], x[figure]) for x, y in zip(baseline, own, strict=False) if figure in x and figure in y]
            ratio = median(a / b for a, b in both) if both else None
            target = row.targets.get(figure)
            imports = [values[figure] for values in differences.get("imports", ([], []))[1] if figure in values]
            compared = _compared(target, ratio, after, imports)
            lines.append(
                BuildLine(
                    name,
                    figure,
                    median(before) if before else None,
                    median(after) if after else None,
                    ratio,
                    None if target is None else str(target),
                    compared,
                    None if target is None or compared is None else target.reached(compared),
                )
            )
    return lines


def _beyond(
    row: BuildRow, figures: Mapping[str, Mapping[str, Sequence[Figures]]], name: str
) -> tuple[list[Figures], list[Figures]]:
    """Figures of both builds by round, less those of the row that this one goes beyond.

    A difference that is not positive is noise, and no figure.
    """

    def of(build: str) -> list[Figures]:
        rounds = list(figures[name][build])
        if row.beyond is None:
            return rounds
        less = figures[row.beyond][build]
        return [
            {key: value - other[key] for key, value in values.items() if value > other[key]}
            for values, other in zip(rounds, less, strict=False)
        ]

    return of("baseline"), of("this")


def _compared(
    target: Target | None, ratio: float | None, after: Sequence[float], imports: Sequence[float]
) -> float | None:
    """The quantity that a target bounds; None where it was not measured."""
    if target is None or not after:
        return None
    if target.of == "ratio":
        return ratio
    if target.of == "imports":
        return median(a / b for a, b in zip(after, imports, strict=False)) if imports else None
    return median(after)


def cells(line: BuildLine) -> list[str]:
    """Format a line, in the order of ``HEADERS``."""
    reached = {True: "yes", False: "NO", None: NONE}[line.reached]
    beside = "" if line.compared is None or line.compared in (line.ratio, line.this) else f" ({line.compared:.2f})"
    values = [NONE if value is None else number(value) for value in (line.baseline, line.this)]
    ratio = NONE if line.ratio is None else f"{line.ratio:.2f}"
    return [line.row, line.figure, *values, ratio, f"{line.target or NONE}{beside}", reached]


def print_table(console: Console, lines: Sequence[BuildLine], facts: Mapping[str, str]) -> None:
    """Print table and facts."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, header in enumerate(HEADERS):
        table.add_column(Text(header), justify="left" if column < 2 else "right")
    for line in lines:
        table.add_row(*map(Text, cells(line)))
    console.print(table)
    for name, value in facts.items():
        console.print(Text(f"{name}: {value}"), soft_wrap=True)


def markdown(lines: Sequence[BuildLine], facts: Mapping[str, str], errors: Mapping[str, Sequence[str]]) -> str:
    """Write the same as a Markdown document, with the rows that failed."""
    parts = ["# Two builds", "", *(f"- {name}: {value}" for name, value in facts.items())]
    parts += ["", markdown_table(HEADERS, map(cells, lines))]
    for name, messages in errors.items():
        parts += ["", f"`{name}` failed:", "", *(f"```text\n{message}\n```" for message in messages)]
    return "\n".join(parts) + "\n"


def build_facts(settings: BenchmarkSettings, roots: Mapping[str, str]) -> dict[str, str]:
    """Describe the comparison in lines, by their titles."""
    source = "synthetic pairs" if settings.data_file is None else settings.data_file
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d"),
        "machine": f"{device_name('cpu')}, {cpus} CPU(s); {settings.num_threads} thread(s) of PyTorch",
        **roots,
        "rounds": f"medians of {settings.repeats} interleaved round(s), a process each; ratio: this build's to the"
        " baseline's in the same round",
        "peak MiB": "of all processes of a command together, shared pages once",
        "sizes": f"{settings.read_pairs:,} pairs read ({source}), {settings.compared_runs:,} runs compared,"
        f" {settings.metrics_rows:,} rows of metrics, demo {' '.join(settings.sweep) or 'as it is'}",
    }
