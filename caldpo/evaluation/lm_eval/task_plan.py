"""Which tasks run, and how: the names of ``leaderboard.tasks`` spelled out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caldpo.errors import CaldpoError
from caldpo.evaluation.lm_eval.installation import OTHER, Installation
from caldpo.evaluation.lm_eval.leaderboards import BOARDS, Row

PAIRS = "held_out_pairs"  # a task of ours, made of the run's own data
OURS = (*BOARDS, PAIRS)
_ROWS = {row.task: row for rows in BOARDS.values() for row in rows} | {PAIRS: Row(PAIRS, 0, ("acc",))}


@dataclass(frozen=True)
class Wanted:
    """One task to run.

    Args:
        name: of the harness's task, group or tag.
        shots: to set; None leaves them to the task.
        board: the leaderboard that it came with; None if it was named itself.
        row: how its figure is read, also where it was named itself; None: by what it reports.
    """

    name: str
    shots: int | None
    board: str | None = None
    row: Row | None = None


def spell_out(tasks: Sequence[str], shots: int | None) -> list[Wanted]:
    """The tasks behind the names, each once; a task of a leaderboard has the leaderboard's shots in any case.

    Args:
        tasks: names of leaderboards, and of tasks, groups or tags of the harness.
        shots: of the tasks that are named themselves; None leaves them to each task.
    """
    rows = [
        Wanted(row.task, None if row.carries_shots else row.shots, board, row)
        for board in BOARDS
        if board in tasks
        for row in BOARDS[board]
    ]
    alone = [
        Wanted(name, None if name == PAIRS else shots, row=_ROWS.get(name)) for name in tasks if name not in BOARDS
    ]
    return list({task.name: task for task in reversed([*rows, *alone])}.values())[::-1]


def without_packages(plan: Sequence[Wanted], installation: Installation) -> tuple[list[Wanted], Mapping[str, str]]:
    """The tasks that can run as far as packages go, and why others cannot.

    Raises:
        CaldpoError: a task that was named itself cannot, or none can.
    """
    left_out: dict[str, str] = {}
    for task in plan:
        lacks = installation.lacks(task.name)
        if lacks and task.board is None:
            raise CaldpoError(lacks, key="leaderboard.tasks", value=task.name, remedy=OTHER)
        if lacks:
            left_out[task.name] = lacks
    kept = [task for task in plan if task.name not in left_out]
    require_some(kept, left_out, OTHER)
    return kept, left_out


def require_some(kept: Sequence[object], left_out: Mapping[str, str], remedy: str) -> None:
    """Refuse to measure nothing.

    Raises:
        CaldpoError: every task was left out.
    """
    if not kept:
        reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise CaldpoError(f"none of the tasks can run here: {reasons}", key="leaderboard.tasks", remedy=remedy)
