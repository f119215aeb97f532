"""What an evaluation says on the terminal."""

from __future__ import annotations

import math
import shlex
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.config.run_lifecycle import as_caldpo_error, one_line
from caldpo.evaluation.suite_result import FOLDER, Measure, Result
from caldpo.security.secrets import redact_text
from caldpo.utils.atomic_io import write_text
from caldpo.utils.text_format import number

_FEW = 3  # measures on a line where none is a main one


def print_subject(console: Console, name: str, place: int = 1, total: int = 1) -> None:
    """What comes next, of how many."""
    count = f"{place} of {total}: " if total > 1 else ""
    console.print(Text(f"{count}{name}", "bold"), soft_wrap=True)


def print_left_out(console: Console, folder: Path | None, error: Exception) -> None:
    """A run that could not be evaluated; what nobody foresaw is kept whole in its folder."""
    console.print(f"  left out: {one_line(error)}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if folder is None or as_caldpo_error(error) is not None:
        return
    file = folder / FOLDER / "error.txt"
    file.parent.mkdir(exist_ok=True)
    write_text(file, redact_text("".join(traceback.format_exception(error))))
    console.print(f"  the whole story: {file}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_result(console: Console, suite: str, result: Result, seconds: float, file: Path, *, whole: bool) -> None:
    """One suite's figures: all of them in a table, or the main ones on a line."""
    if not whole:
        told = [m for m in result.measures.values() if m.main] or list(result.measures.values())[:_FEW]
        shown = ", ".join(f"{m.title} {number(m.value)}" for m in told)
        console.print(f"  {suite}: {shown} ({seconds:.1f} s)", highlight=False, markup=False, soft_wrap=True)
    else:
        table = Table(title=f"{suite}: {result.examples:,} examples, {seconds:.1f} s", title_justify="left")
        table.add_column("measure")
        for header in ("value", "interval", "n"):
            table.add_column(header, justify="right")
        table.add_column("unit")
        for measure in result.measures.values():
            table.add_row(measure.title, number(measure.value), _interval(measure), _count(measure), measure.unit)
        console.print(table)
    for note in result.notes:
        console.print(Text(f"  note: {note}", "yellow"), soft_wrap=True)
    if whole:
        console.print(f"written to {file}", highlight=False, markup=False, soft_wrap=True)


def print_end(console: Console, total: int, failed: int, report: Path | None, run: str | None) -> None:
    """What became of a sweep, and where to read on."""
    if total > 1:
        console.print(f"{total - failed} of {total} runs evaluated", highlight=False)
    if report is not None:
        console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)
    elif run is not None:
        command = f"python -m caldpo.compare {shlex.quote(str(run))}"
        console.print(f"tables and pictures: {command}", highlight=False, markup=False, soft_wrap=True)


def _interval(measure: Measure) -> str:
    if measure.low is None or measure.high is None or not math.isfinite(measure.value):
        return ""
    return f"{number(measure.low)} to {number(measure.high)}"


def _count(measure: Measure) -> str:
    return "" if measure.n is None else f"{measure.n:,}"
