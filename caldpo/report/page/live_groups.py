"""Which settings a page draws that follows its runs: also those of which no run has finished, as far as they came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from caldpo.config.run_lifecycle import FINISHED, RUNNING
from caldpo.report.grouping import RunGroup
from caldpo.report.run_files import Run
from caldpo.report.shown_metrics import is_drawn


def drawn_groups(groups: Sequence[RunGroup]) -> list[tuple[RunGroup, str]]:
    """Return the settings that have curves, each with what its curves are of: nothing to say where all runs finished.

    A setting is drawn from its finished runs; where it has none from those that train; else from those that ended
    early. In what is returned these count as finished: it is for figures over steps and samples, and for no table.
    """
    drawn = []
    for group in groups:
        if group.finished:
            count, total = len(group.finished), len(group.runs)
            drawn.append((group, "" if count == total else f"{count} of {total} finished"))
            continue
        runs = [run for run in group.runs if any(map(is_drawn, run.curves))]
        shown = [run for run in runs if run.status == RUNNING] or runs
        if shown:
            drawn.append((replace(group, runs=tuple(map(_counted, shown))), shown[0].status))
    return drawn


def _counted(run: Run) -> Run:
    return replace(run, status=FINISHED)
