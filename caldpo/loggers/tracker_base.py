"""What ``logger=`` chooses: a tracker of the run besides ``metrics.csv``, none, or several at once."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pytorch_lightning.loggers import Logger

from caldpo.config.run_lifecycle import describe_error
from caldpo.errors import CaldpoError
from caldpo.metrics_file import STEP
from caldpo.utils.atomic_io import write_text

Rows = Iterable[Mapping[str, str]]  # of metrics.csv, as text
_TOTALS = ("steps", "wall_seconds", "peak_memory_bytes", "start_difference", "skipped_steps")


@runtime_checkable
class TableLogger(Protocol):
    """A Lightning logger that takes tables, as W&B's does."""

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None: ...


class Tracker:
    """Base of the trackers; as it is, it tracks nothing.

    A run opens it on all ranks, logs to the loggers that it returned, and closes it whatever happens.
    """

    url: str | None = None  # of the run's page, once it is open and online

    def check(self) -> None:
        """Refuse what is not installed, before data and weights load."""

    def open(
        self, run_dir: Path, name: str, group: str | None, config: dict[str, Any], earlier: Rows | None = None
    ) -> list[Logger]:
        """Start tracking, or go on with a resumed run, on the first rank.

        Args:
            run_dir: the run's folder.
            name, group: of the run, where nothing else names them; no group outside a sweep.
            config: of the run, without secrets; its ``tags`` and ``notes`` are those of the tracked run.
            earlier: the rows that a resumed run has kept; None of a new one. The tracker then has each row once.

        Raises:
            CaldpoError: the tracker refuses a setting, a variable or the account.
        """
        return []

    def close(self, *, failed: bool = False) -> None:
        """End what is open, if anything; ``failed``: by an error or a signal."""

    @property
    def upload(self) -> str | None:
        """The command that uploads what was kept offline."""
        return None

    @property
    def view(self) -> str | None:
        """The command that shows the run on this machine."""
        return None

    def summarize(self, values: Mapping[str, float]) -> None:
        """Add figures of the whole run, such as its wall time, to one that is still open."""

    def add_summary(self, run_dir: Path, values: Mapping[str, float]) -> str | None:
        """Add figures that come later, such as those of an evaluation, to the run that a training left in its folder.

        Returns:
            A line for a person: what to do next, or why the tracker was not reached, which is no error: the files of
            the run are its record. None where there is nothing to say.
        """
        return None


class NoTracker(Tracker):
    """``logger=csv`` and ``logger=none``: metrics.csv only."""


class Trackers(Tracker):
    """All trackers of a run, by the names of their options, as one."""

    def __init__(self, trackers: Mapping[str, Tracker] | None = None) -> None:
        self.trackers = dict(trackers or {})
        for name, tracker in self.trackers.items():
            if not isinstance(tracker, Tracker):
                raise CaldpoError(
                    f"builds {type(tracker).__name__}, which is no tracker",
                    key=f"logger.{name}._target_",
                    remedy="name a subclass of caldpo.loggers.tracker_base.Tracker",
                )

    def __iter__(self) -> Iterator[Tracker]:
        return iter(self.trackers.values())

    def check(self) -> None:
        for tracker in self:
            tracker.check()

    def open(
        self, run_dir: Path, name: str, group: str | None, config: dict[str, Any], earlier: Rows | None = None
    ) -> list[Logger]:
        rows = None if earlier is None else list(earlier)
        return [logger for tracker in self for logger in tracker.open(run_dir, name, group, config, rows)]

    def close(self, *, failed: bool = False) -> None:
        errors = []
        for tracker in self:
            try:
                tracker.close(failed=failed)
            except Exception as error:  # the others are closed all the same
                errors.append(error)
        if errors and not failed:  # else the run's own error matters more
            raise errors[0]

    @property
    def url(self) -> str | None:  # type: ignore[override]  # of whichever has one
        return next((tracker.url for tracker in self if tracker.url), None)

    @property
    def upload(self) -> str | None:
        return next((tracker.upload for tracker in self if tracker.upload), None)

    @property
    def views(self) -> list[str]:
        """The commands that show the run on this machine."""
        return [tracker.view for tracker in self if tracker.view]

    def summarize(self, values: Mapping[str, float]) -> None:
        for tracker in self:
            tracker.summarize(values)

    def add_summary(self, run_dir: Path, values: Mapping[str, float]) -> str | None:
        return "\n  ".join(filter(None, (tracker.add_summary(run_dir, values) for tracker in self))) or None


def send_earlier(logger: Logger, earlier: Rows | None) -> None:
    """Log the rows of ``metrics.csv`` that a resumed run has kept."""
    for row in earlier or ():
        values = {key: float(text) for key, text in row.items() if text}
        logger.log_metrics({key: value for key, value in values.items() if key != STEP}, int(values[STEP]))


def run_totals(summary: Mapping[str, Any]) -> dict[str, float]:
    """Select from ``summary.json`` the figures of a whole run that a tracker's summary shows, as ``run/NAME``."""
    return {f"run/{name}": float(summary[name]) for name in _TOTALS if isinstance(summary.get(name), int | float)}


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out what is not finite."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def name_of_run(chosen: str | None, name: str, group: str | None) -> str:
    """Return the name that was chosen for a run, which tells the runs of a sweep apart; else ``name``."""
    if not chosen:
        return name
    return chosen if group is None else f"{chosen}: {name}"


@contextlib.contextmanager
def beginning(tracker: str, option: str) -> Iterator[None]:
    """Explain on one line why a tracker, ``option`` of ``logger``, starts no run: a setting, account or server."""
    try:
        yield
    except OSError:  # of the disk; it speaks for itself
        raise
    except Exception as error:
        raise CaldpoError(
            f"{tracker} does not begin its run ({describe_error(error)})",
            key="logger",
            value=option,
            remedy=f"mend the keys of logger.{option}, or leave it out: logger=csv",
        ) from error


def not_reached(tracker: str, error: Exception) -> str:
    """Tell that a tracker was not told of later figures: network, account, disk, or a package that is gone."""
    return f"{tracker} was not reached: {describe_error(error)}"


def write_run_id(run_dir: Path, option: str, run_id: str) -> None:
    """Remember in the run's folder the id that a tracker has given the run."""
    write_text(run_dir / f"{option}.json", json.dumps({"run_id": run_id}))


def read_run_id(run_dir: Path, option: str) -> str | None:
    """Return the id that a tracker has given the run at an earlier start; None where there is none."""
    try:
        run_id = json.loads((run_dir / f"{option}.json").read_text(encoding="utf-8"))["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return run_id if isinstance(run_id, str) else None
