"""The end of a sweep: what became of each run, as a table and ``sweep.json``, from the runs' files alone."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from caldpo.compare.discover import trained_nothing
from caldpo.config.job import FAILED, FINISHED, INTERRUPTED, RUNNING, SUMMARY, read_summary, write_json

REPORT = "sweep.json"


@dataclass(frozen=True)
class RunOutcome:
    """A run's folder (relative to the sweep's), its status and, when it failed, its error on one line."""

    name: str
    status: str
    error: str | None


class SweepReport(Callback):
    """Hydra callback that reports a sweep and ends the command with code 1 when any run failed."""

    # The sweep under way in this process, for report_interrupted: Hydra tells no callback of an interruption.
    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say where the runs are going to lie."""
        SweepReport.folder = Path(config.hydra.sweep.dir)
        print(f"sweep in {SweepReport.folder}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report.

        Raises:
            SystemExit: with code 1 when any run failed.
        """
        SweepReport.folder = None
        outcomes = report(Path(config.hydra.sweep.dir))
        if any(run.status != FINISHED for run in outcomes):
            raise SystemExit(1)


def report_interrupted() -> None:
    """Report the sweep under way, its unfinished runs as interrupted; nothing when there is none."""
    folder, SweepReport.folder = SweepReport.folder, None
    if folder is None or not folder.is_dir():
        return
    for summary in folder.rglob(SUMMARY):
        if read_summary(summary.parent).get("status") == RUNNING:
            write_json(summary, read_summary(summary.parent) | {"status": INTERRUPTED})
    report(folder)


def report(folder: Path) -> list[RunOutcome]:
    """Write ``sweep.json`` and print the table of the runs in ``folder``."""
    outcomes = collect(folder)
    write_json(folder / REPORT, {"folder": str(folder), "runs": [asdict(run) for run in outcomes]})
    _print(folder, outcomes)
    return outcomes


def collect(folder: Path) -> list[RunOutcome]:
    """The runs under ``folder`` in the order of their names (seed=2 before seed=10), from their own files."""
    runs = sorted({path.parent for path in folder.rglob(SUMMARY)}, key=lambda run: _natural(str(run)))
    return [_outcome(folder, run) for run in runs]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _outcome(folder: Path, run: Path) -> RunOutcome:
    try:
        summary = read_summary(run)
    except json.JSONDecodeError as error:
        summary = {"status": FAILED, "error": f"{SUMMARY} cannot be read: {error}"}
    return RunOutcome(str(run.relative_to(folder)), summary.get("status", FINISHED), summary.get("error"))


def _print(folder: Path, outcomes: list[RunOutcome]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("error", overflow="fold")
    styles = {FINISHED: "green", FAILED: "bold red", INTERRUPTED: "yellow", RUNNING: "yellow"}
    for run in outcomes:
        error = textwrap.shorten(run.error or "", 200, placeholder=" ...")  # all of it is in the run's folder
        table.add_row(Text(run.name), Text(run.status, styles.get(run.status, "")), Text(error))
    console.print(table)
    finished = sum(run.status == FINISHED for run in outcomes)
    print(f"{finished} of {len(outcomes)} runs finished; all lie in {folder}")
    if any(run.status == FINISHED and not trained_nothing(folder / run.name) for run in outcomes):
        print(f"compare them: python -m caldpo.compare {shlex.quote(str(folder))}")
