"""Progress bars on standard error, for terminals alone. No heavy imports: rich is loaded for a bar only."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TypeVar

PATIENCE = 2.0  # seconds before there is something to see
Item = TypeVar("Item")


def tracked(items: Iterable[Item], label: str) -> Iterable[Item]:
    """Show a bar on a terminal while the items are taken, nothing in a log file."""
    from rich.progress import track

    from caldpo.utils.stream_console import Console

    console = Console(stderr=True)
    return track(items, label, console=console, transient=True, disable=not console.is_terminal)


class DelayedProgress:
    """Show a bar on standard error once the work, ``total`` in any unit, has taken two seconds, on the first rank."""

    def __init__(self, label: str, total: int) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        from caldpo.utils.collectives import is_first_rank  # imports torch
        from caldpo.utils.stream_console import Console

        self.label, self.total, self.done = label, total, 0
        console = Console(stderr=True)
        self.shown = console.is_terminal and is_first_rank()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True)
        self.started = time.monotonic()

    def __enter__(self) -> DelayedProgress:
        return self

    def advance(self, amount: int) -> None:
        """Advance the bar by ``amount``."""
        self.done += amount
        if not self.shown or time.monotonic() - self.started < PATIENCE:
            return
        if not self.bar.tasks:
            self.bar.start()
            self.bar.add_task(self.label, total=self.total)
        self.bar.update(self.bar.tasks[0].id, completed=self.done)

    def __exit__(self, *error: object) -> None:
        if self.bar.tasks:  # stopping one that never started writes an empty line where there is no terminal
            self.bar.stop()
