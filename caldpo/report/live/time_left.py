"""Estimate how long runs, and a sweep of them, have still to train, from steps done and planned and their times."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from caldpo.config.run_lifecycle import FINISHED, RUNNING
from caldpo.config.run_lock import read_owner
from caldpo.report.live.watched_runs import WatchedRun

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def seconds_left(watched: WatchedRun, now: float) -> float | None:
    """Return how many seconds a run that trains has still to train at its speed so far; None where nobody can tell.

    Its speed is taken since its process began, loading included, or, of one that was resumed, since it is watched.
    """
    run, step, planned = watched.run, watched.step, watched.run.planned_steps
    if run.status != RUNNING or step is None or planned is None or watched.written is None:
        return None
    began, before = watched.first
    if run.summary.get("stretches", 1) <= 1 and (since := _since(run.folder)) is not None:
        began, before = since, 0
    if began is None or before is None or step <= before or watched.written <= began:
        return None
    left = (planned - step) * (watched.written - began) / (step - before)
    return max(0.0, left - max(0.0, now - watched.written))


def sweep_seconds_left(runs: Sequence[WatchedRun], waiting: int, now: float) -> float | None:
    """Return how many seconds a sweep has still to train, of which ``waiting`` runs have not begun.

    They are taken to last as long as the others, and to begin as those that train now end. None where no run trains,
    or nobody can tell.
    """
    left = {watched.run.folder: seconds_left(watched, now) for watched in runs if watched.run.status == RUNNING}
    known = [seconds for seconds in left.values() if seconds is not None]
    if not known or len(known) < len(left):
        return None
    whole = [_number(watched.run.summary.get("wall_seconds")) for watched in runs if watched.run.status == FINISHED]
    lasted = [seconds for seconds in whole if seconds is not None]
    if not lasted:
        trained = [(watched, left[watched.run.folder]) for watched in runs if watched.run.folder in left]
        lasted = [s + now - since for w, s in trained if s is not None and (since := _since(w.run.folder)) is not None]
    if waiting and not lasted:
        return None
    each = sum(lasted) / len(lasted) if lasted else 0.0
    return max(*known, (sum(known) + waiting * each) / len(known))


def as_text(seconds: float | None) -> str:
    """Write an estimate in one unit: ``about 3 min``; empty where there is none."""
    if seconds is None:
        return ""
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), (60.0, "min"))
    return f"about {seconds / size:.0f} {unit}" if seconds >= 60.0 else "less than 1 min"


def _since(folder: Path) -> float | None:
    """When the process that trains began, seconds since 1970."""
    try:
        return datetime.fromisoformat(str((read_owner(folder) or {})["since"])).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
