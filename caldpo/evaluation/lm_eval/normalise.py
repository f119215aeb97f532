"""Scores of leaderboard version 2 as the board showed them: above what guessing gets, 0 to 100.

A score ``s`` becomes ``100 (s - c) / (1 - c)`` where guessing gets ``c``, and 0 below that; of a task with subtasks
(BBH, MuSR) it is the plain mean of the subtasks' own. MATH and IFEval have ``c = 0``.
https://huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caldpo.evaluation.lm_eval.leaderboards import BOARDS, V2, Row
from caldpo.evaluation.lm_eval.task_plan import Wanted


def above_chance(score: float, chance: float) -> float:
    """``score`` (0 to 1) on the scale where guessing is 0 and 100 is everything right."""
    return 100 * max(0.0, score - chance) / (1 - chance)


def normalised(task: Wanted, results: Mapping[str, Any]) -> float | None:
    """The figure in the board's own column, 0 to 100; None for other tasks than version 2's."""
    row = task.row
    if row is None or row not in BOARDS[V2]:
        return None
    if isinstance(row.chance, float):
        return above_chance(_score(row, results, task.name), row.chance)
    parts = [above_chance(_score(row, results, leaf), _chance(row, results, leaf)) for leaf in results["n-samples"]]
    return sum(parts) / len(parts)


def _score(row: Row, results: Mapping[str, Any], name: str) -> float:
    scores = results.get("groups", {}).get(name) or results["results"][name]
    return sum(float(scores[f"{metric},none"]) for metric in row.metrics) / len(row.metrics)


def _chance(row: Row, results: Mapping[str, Any], leaf: str) -> float:
    if isinstance(row.chance, Mapping):
        return row.chance[leaf]
    return 1 / len(results["configs"][leaf]["doc_to_choice"])
