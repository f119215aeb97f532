"""Define the two Open LLM Leaderboards as data: tasks, shots, metrics, packages and the scale of scores.

Version 2 (2024): the group ``leaderboard`` of LM Eval (``lm_eval/tasks/leaderboard/README.md``), whose tasks carry
their shots themselves. Version 1 (2023): the group ``openllm`` (``lm_eval/tasks/benchmarks/openllm.yaml``); its tasks
run with other shots when they are named alone, so the shots are set here. Of TruthfulQA that board used ``mc2``.

Scores of version 2 are also given on the board's scale. A score ``s`` becomes ``100 (s - c) / (1 - c)`` where guessing
gets ``c``, and 0 below that; for a task with subtasks (BBH, MuSR) it is the plain mean of the subtasks'. MATH and
IFEval have ``c = 0``. https://huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# names of this project, which expand to the tasks of a board
V1, V2 = "leaderboard_v1", "leaderboard_v2"


@dataclass(frozen=True)
class Row:
    """One column of a leaderboard.

    Args:
        task: name of LM Eval's task or group.
        shots: examples in the prompt.
        metrics: of LM Eval, with the filter where a task has several; the column is the mean of several metrics.
        by_subject: average the subtasks plainly, not weighted by their sizes.
        chance: score of guessing: one number, numbers by subtask, or None where each subtask of LM Eval lists its
            choices.
    """

    task: str
    shots: int
    metrics: tuple[str, ...]
    by_subject: bool = False
    chance: float | Mapping[str, float] | None = field(default=0.0, hash=False)


BOARDS: Mapping[str, tuple[Row, ...]] = {
    V2: (
        Row("leaderboard_mmlu_pro", 5, ("acc",), chance=1 / 10),
        Row("leaderboard_bbh", 3, ("acc_norm",), chance=None),
        Row("leaderboard_gpqa", 0, ("acc_norm",), chance=1 / 4),
        Row("leaderboard_math_hard", 4, ("exact_match",)),
        Row("leaderboard_ifeval", 0, ("prompt_level_strict_acc", "inst_level_strict_acc")),
        Row(
            "leaderboard_musr",
            0,
            ("acc_norm",),
            chance={
                "leaderboard_musr_murder_mysteries": 1 / 2,
                "leaderboard_musr_object_placements": 1 / 5,
                "leaderboard_musr_team_allocation": 1 / 3,
            },
        ),
    ),
    V1: (
        Row("arc_challenge", 25, ("acc_norm",)),
        Row("hellaswag", 10, ("acc_norm",)),
        Row("mmlu", 5, ("acc",), by_subject=True),
        Row("truthfulqa_mc2", 0, ("acc",)),
        Row("winogrande", 5, ("acc",)),
        Row("gsm8k", 5, ("exact_match,strict-match",)),
    ),
}

# what tasks import beyond LM Eval, by the beginning of their names; MATH's answers are parsed by antlr4 4.11, and Hydra
# has 4.9; IFEval imports pkg_resources, which later versions of setuptools do not have
NEEDS: Mapping[str, tuple[str, ...]] = {
    "leaderboard_math": ("math-verify", "sympy", "antlr4-python3-runtime==4.11.*"),
    "leaderboard_ifeval": ("langdetect", "immutabledict", "nltk>=3.9.1", "setuptools<81"),
}


def above_chance(score: float, chance: float) -> float:
    """Scale ``score`` (0 to 1) so that guessing gets 0 and 100 is everything right."""
    return 100 * max(0.0, score - chance) / (1 - chance)


def board_score(name: str, row: Row, results: Mapping[str, Any]) -> float | None:
    """Compute a task's score on the scale of leaderboard version 2, 0 to 100; None for other tasks.

    ``results`` are LM Eval's, of this task alone.
    """
    if row not in BOARDS[V2]:
        return None
    if isinstance(row.chance, float):
        return above_chance(_score(row, results, name), row.chance)
    parts = [above_chance(_score(row, results, leaf), _chance(row, results, leaf)) for leaf in results["n-samples"]]
    return sum(parts) / len(parts)


def scores_of(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return LM Eval's scores of a group or a task; empty where it reports none."""
    return results.get("groups", {}).get(name) or results["results"].get(name, {})


def _score(row: Row, results: Mapping[str, Any], name: str) -> float:
    scores = scores_of(results, name)
    return sum(float(scores[f"{metric},none"]) for metric in row.metrics) / len(row.metrics)


def _chance(row: Row, results: Mapping[str, Any], leaf: str) -> float:
    if isinstance(row.chance, Mapping):
        return row.chance[leaf]
    return 1 / len(results["configs"][leaf]["doc_to_choice"])
