"""Print a comparison: the main figures, what is missing from them, and the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.report import shown_metrics
from caldpo.report.comparison_facts import count_text, finished_runs, headline
from caldpo.report.escaping import one_line, shorten
from caldpo.report.evaluation_results import evaluated, suites_of
from caldpo.report.evaluation_tables import faults
from caldpo.report.grouping import RunGroup
from caldpo.report.table_cells import cells
from caldpo.report.unlike_runs import unlike


def print_comparison(
    console: Console, groups: Sequence[RunGroup], written: Sequence[Path], failed: Sequence[str] = ()
) -> None:
    """Print a table of final figures (mean and spread over seeds), the runs left out, and the files."""
    finished = [group for group in groups if group.finished]
    columns = [metric for metric in shown_metrics.CONSOLE if any(group.finals(metric.final) for group in finished)]
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    seeds = count_text(group.seeds for group in finished)
    table.title = Text(f"Final held-out figures: {headline(finished)} · {seeds}")
    # labels break between overrides, never inside one: which group a row is has to be readable
    widest = max((len(word) for group in finished for word in group.label.split()), default=0)
    table.add_column("setting", min_width=widest, overflow="fold")
    for metric in columns:
        header = Text(f"{metric.title}\n{metric.unit}")
        # On a narrow terminal cells wrap between mean and spread, and headers between words.
        table.add_column(header, justify="right", min_width=max(map(len, metric.title.split())))
    by_metric = [cells(finished, metric) for metric in columns]
    for group in finished:
        figures = (column[group.label].replace("± ", "±") for column in by_metric)
        table.add_row(Text(group.label), *map(Text, figures))
    for text in unlike(groups):
        console.print(Text(f"warning: {one_line(text)}", "bold yellow"), soft_wrap=True)
    console.print(table)
    for run in (run for group in groups for run in group.runs if not run.finished):
        why = f"{run.status} at {run.progress}: {shorten(run.error or '')}"
        console.print(Text(one_line(f"left out: {run.name}, {why}"), "yellow"))
    _print_evaluations(console, finished)
    for text in failed:
        console.print(Text(one_line(text), "yellow"), soft_wrap=True)
    for path in written:
        console.print(Text(f"{path.name:<20} {_from_here(path)}"), soft_wrap=True)


def _print_evaluations(console: Console, finished: Sequence[RunGroup]) -> None:
    """Print by which suites how many runs were evaluated, and what keeps them from being compared."""
    total = len(finished_runs(finished))
    for suite in suites_of(finished):
        count = sum(len(evaluated(group, suite)) for group in finished)
        console.print(f"evaluated by {suite}: {count} of {total} runs", highlight=False, markup=False)
        for fault in faults(finished, suite):
            console.print(Text(f"  {fault.replace('`', '')}", "yellow"), soft_wrap=True)


def _from_here(path: Path) -> Path:
    """Write the path as it is shortest to type from the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
