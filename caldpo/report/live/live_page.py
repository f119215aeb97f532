"""The page of runs under way and its state, made anew where files changed, and no more often than it takes time for."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from caldpo.config.find_runs import sweep_overrides
from caldpo.config.run_lifecycle import describe_error
from caldpo.report.escaping import one_line
from caldpo.report.grouping import RunGroup, group_runs
from caldpo.report.live.live_state import progress
from caldpo.report.live.watched_runs import WatchedRuns
from caldpo.report.page.page_html import Live, render_page
from caldpo.report.planned_runs import planned_runs
from caldpo.report.statistics import BandKind

_FAILED = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<title>no page</title><p>The page cannot be made; the terminal says why. It is tried again.</p></html>"""


class LivePage:
    """A page that follows the runs of folders; for several threads at once.

    ``version`` grows where the page would show anything else; its first part is of this server alone.
    """

    def __init__(
        self, folders: Sequence[Path], root: Path, band: BandKind = "range", *, rest: float = 1.0, share: float = 0.1
    ) -> None:
        """Files are looked at when somebody asks: at most every ``rest`` seconds, and in ``share`` of the time."""
        self.watched = WatchedRuns(folders, root)
        self.fault: str | None = None  # why the page could not be made last
        self._band: BandKind = band
        self._lock = threading.RLock()
        self._look, self._draw = _Pace(rest, share), _Pace(rest, share)
        self._name, self._number, self._changed = secrets.token_hex(8), 0, True
        self._groups: list[RunGroup] = []
        self._made: dict[bool, tuple[str, bytes]] = {}  # whether it is bare: version, and the page

    @property
    def version(self) -> str:
        return f"{self._name}-{self._number}"

    def state(self) -> bytes:
        """Return progress and version as JSON."""
        with self._lock:
            self.refresh()
            folders, runs = self.watched.folders, list(self.watched.watched.values())
            counts = [planned_runs(folder) for folder in folders]
            planned = sum(count for count in counts if count is not None) if None not in counts else None
            told = progress(folders, runs, planned, time.time())
            return json.dumps({"version": self.version, **told}, allow_nan=False).encode()

    def page(self, *, bare: bool = False) -> bytes:
        """Return the page as HTML; ``bare``: without scripts and style, for a page that has them."""
        with self._lock:
            self.refresh()
            made = self._made.get(bare)
            if made is None or made[0] != self.version:
                with self._draw:
                    made = self._made[bare] = self.version, self._render(bare)
            return made[1]

    def refresh(self) -> None:
        """Look at the files, where it is time to."""
        with self._lock:
            if self._look.is_due():
                with self._look:
                    self._changed |= self.watched.refresh()
            if self._changed and self._draw.is_due():
                self._groups = group_runs(self.watched.runs)
                self._number, self._changed = self._number + 1, False

    def _render(self, bare: bool) -> bytes:
        folders = self.watched.folders
        tasks = [task for folder in folders if (task := sweep_overrides(folder))]
        live = Live(self.version, self.watched.lines_of, bare)
        try:
            text = render_page(self._groups, folders, self._band, tasks, live=live)
        except Exception as error:  # of whatever is in the runs' files: the next state may be better
            fault = one_line(describe_error(error))
            if fault != self.fault:
                print(f"the page cannot be made: {fault}", flush=True)
            self.fault = fault
            return self._made[bare][1] if bare in self._made else _FAILED.encode()
        self.fault = None
        return text.encode("utf-8", errors="replace")


class _Pace:
    """Something that is done at most every ``rest`` seconds, and takes at most ``share`` of the time."""

    def __init__(self, rest: float, share: float) -> None:
        self._rest, self._share = rest, share
        self._began = self._next = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self._next = now + max(self._rest, (now - self._began) * (1 / self._share - 1))
