"""The day on which a run began, for chat templates that write the date: see :mod:`caldpo.data.template_source`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from caldpo.config.summary_file import known_summary
from caldpo.run_record import DATE, note


def keep_clock(data: Any, run_dir: Path, *, resumed: bool) -> None:
    """Write down on which day a run began, and have a resumed one render as of then.

    Args:
        data: the data module, whose ``now`` it is.
        run_dir: the run's folder, with its ``summary.json``.
        resumed: whether the run was begun before.
    """
    began = clock_of(known_summary(run_dir)) if resumed else None
    if began is None:
        note(run_dir, {DATE: data.now.date().isoformat()})
    else:
        data.now = began


def clock_of(summary: Mapping[str, Any]) -> datetime | None:
    """The day on which a run began by its ``summary.json``; None where it does not say."""
    try:
        return datetime.fromisoformat(summary[DATE])
    except (KeyError, TypeError, ValueError):
        return None
