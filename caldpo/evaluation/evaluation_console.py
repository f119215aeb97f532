"""Print the progress and the results of an evaluation."""

from __future__ import annotations

import math
import shlex
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from caldpo.config.run_lifecycle import as_caldpo_error, describe_error
from caldpo.evaluation.suite_base import FOLDER, Measure, Result
from caldpo.security.secrets import redact_text
from caldpo.utils.atomic_io import write_text
from caldpo.utils.text_format import number

_FEW = 3  # measures on a line where none is a main one


def print_policy(console: Console, name: str, index: int = 1, total: int = 1) -> None:
    """Print the name of the next policy, with its number among several."""
    count = f"{index} of {total}: " if total > 1 else ""
    console.print(Text(f"{count}{name}", "bold"), soft_wrap=True)


def print_left_out(console: Console, error: Exception) -> None:
    """Print why a suite or a policy is left out."""
    console.print(f"  left out: {describe_error(error)}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_failure(console: Console, folder: Path | None, error: Exception) -> None:
    """Print why a run of a sweep was not evaluated; write the traceback of an unexpected error into its folder."""
    print_left_out(console, error)
    if folder is None or as_caldpo_error(error) is not None:
        return
    file = folder / FOLDER / "error.txt"
    file.parent.mkdir(exist_ok=True)
    write_text(file, redact_text("".join(traceback.format_exception(error))))
    console.print(f"  traceback: {file}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_result(console: Console, suite: str, result: Result, seconds: float, file: Path, *, full: bool) -> None:
    """Print one suite's measures: all of them in a table, or the main ones on a line."""
    if full:
        right = [Column(header, justify="right") for header in ("value", "interval", "n")]
        title = f"{suite}: {result.examples:,} examples, {seconds:.1f} s"
        table = Table("measure", *right, "unit", title=title, title_justify="left")
        for measure in result.measures.values():
            count = "" if measure.n is None else f"{measure.n:,}"
            table.add_row(measure.title, number(measure.value), _interval(measure), count, measure.unit)
        console.print(table)
    else:
        measures = [m for m in result.measures.values() if m.main] or list(result.measures.values())[:_FEW]
        line = ", ".join(f"{m.title} {number(m.value)}" for m in measures)
        console.print(f"  {suite}: {line} ({seconds:.1f} s)", highlight=False, markup=False, soft_wrap=True)
    for note in result.notes:
        console.print(Text(f"  note: {note}", "yellow"), soft_wrap=True)
    if full:
        console.print(f"written to {file}", highlight=False, markup=False, soft_wrap=True)


def print_end(console: Console, total: int, failed: int, report: Path | None, run: str | None) -> None:
    """Print how many runs of a sweep were evaluated, and where the report is or how to write one."""
    if total > 1:
        console.print(f"{total - failed} of {total} runs evaluated", highlight=False)
    if report is not None:
        console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)
    elif run is not None:
        command = f"python -m caldpo.compare {shlex.quote(str(run))}"
        console.print(f"tables and figures: {command}", highlight=False, markup=False, soft_wrap=True)


def _interval(measure: Measure) -> str:
    if measure.low is None or measure.high is None or not math.isfinite(measure.value):
        return ""
    return f"{number(measure.low)} to {number(measure.high)}"
