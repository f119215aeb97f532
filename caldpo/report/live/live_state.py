"""What is said of runs under way: how many finished, train, failed or have not begun, how far each is, time left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caldpo.config.run_lifecycle import FINISHED, RUNNING
from caldpo.report.escaping import one_line, shorten
from caldpo.report.live.time_left import as_text, seconds_left, sweep_seconds_left
from caldpo.report.live.watched_runs import WatchedRun
from caldpo.utils.text_format import counted

_LISTED = 200  # runs, the others counted


def progress(folders: Sequence[Path], runs: Sequence[WatchedRun], planned: int | None, now: float) -> dict[str, Any]:
    """Return a sentence, and a row for each run that trains or ended early, as plain JSON values.

    Args:
        folders: that are watched.
        runs: that were found in them.
        planned: how many runs there are to be, None where nobody knows.
        now: seconds since 1970.
    """
    rows = [_row(watched, now) for watched in runs if watched.run.status != FINISHED]
    rows.sort(key=lambda row: row["state"] != RUNNING)  # stable
    more = len(rows) - _LISTED
    return {
        "message": _message(folders, runs, planned, now),
        "runs": rows[:_LISTED],
        "more": f"and {counted(more, 'more run')}" if more > 0 else "",
    }


def _message(folders: Sequence[Path], runs: Sequence[WatchedRun], planned: int | None, now: float) -> str:
    names = one_line(", ".join(map(str, folders)))
    there = any(folder.is_dir() for folder in folders)
    if not runs:
        return f"No run has begun in {names} yet." if there else f"There is no folder {names} yet."
    counts = Counter(one_line(watched.run.status) for watched in runs)
    finished = counts.pop(FINISHED, 0)
    waiting = max(0, (planned or 0) - len(runs))
    parts = [f"{finished:,} of {counted(len(runs) + waiting, 'run')} finished"]
    parts += [f"{count:,} {state}" for state, count in sorted(counts.items(), key=lambda item: item[0] != RUNNING)]
    if waiting:
        parts.append(f"{waiting:,} not begun")
    left = as_text(sweep_seconds_left(runs, waiting, now))
    text = f"{', '.join(parts)}{f'; {left} left' if left else ''}."
    return text if there else f"{names} is gone: the page shows what was read last. {text}"


def _row(watched: WatchedRun, now: float) -> dict[str, Any]:
    run, step, planned = watched.run, watched.step, watched.run.planned_steps
    done = "-" if step is None else f"{step:,}"
    return {
        "name": run.name,
        "state": one_line(run.status),
        "steps": done if planned is None else f"{done} of {planned:,}",
        "share": min(1.0, step / planned) if step is not None and planned else None,
        "left": as_text(seconds_left(watched, now)),
        "error": "" if run.status == RUNNING else shorten(run.error or ""),
    }
