"""Notes of a run: lines on the terminal, printed by the first rank alone."""

from __future__ import annotations

from collections.abc import Iterable

from caldpo.utils.collectives import is_first_rank
from caldpo.utils.stream_console import Console


def print_notes(lines: Iterable[str]) -> None:
    """Print lines that a user should have read once, on the first rank."""
    for line in lines if is_first_rank() else ():
        Console().print(f"note: {line}", soft_wrap=True, highlight=False, markup=False)
