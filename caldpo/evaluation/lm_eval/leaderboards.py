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
class Package:
    """A package that a task imports and LM Eval itself does not need.

    Args:
        module: its import name.
        pip: its requirement.
        distribution: its name where the version matters; None where any version works.
        version: required beginning of that version.
    """

    module: str
    pip: str
    distribution: str | None = None
    version: str = ""


@dataclass(frozen=True)
class Row:
    """One column of a leaderboard.

    Args:
        task: name of LM Eval's task or group.
        shots: examples in the prompt.
        metrics: of LM Eval, with the filter where a task has several; the column is their mean.
        by_subject: average the subtasks plainly, not weighted by their sizes.
        chance: score of guessing: one number, numbers by subtask, or None where each subtask of LM Eval lists its
            choices.
        carries_shots: LM Eval's own definition of the task has these shots.
    """

    task: str
    shots: int
    metrics: tuple[str, ...]
    by_subject: bool = False
    chance: float | Mapping[str, float] | None = field(default=0.0, hash=False)
    carries_shots: bool = False


BOARDS: Mapping[str, tuple[Row, ...]] = {
    V2: (
        Row("leaderboard_mmlu_pro", 5, ("acc",), chance=1 / 10, carries_shots=True),
        Row("leaderboard_bbh", 3, ("acc_norm",), chance=None, carries_shots=True),
        Row("leaderboard_gpqa", 0, ("acc_norm",), chance=1 / 4, carries_shots=True),
        Row("leaderboard_math_hard", 4, ("exact_match",), carries_shots=True),
        Row("leaderboard_ifeval", 0, ("prompt_level_strict_acc", "inst_level_strict_acc"), carries_shots=True),
        Row(
            "leaderboard_musr",
            0,
            ("acc_norm",),
            chance={
                "leaderboard_musr_murder_mysteries": 1 / 2,
                "leaderboard_musr_object_placements": 1 / 5,
                "leaderboard_musr_team_allocation": 1 / 3,
            },
            carries_shots=True,
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

_ANTLR = Package("antlr4", "antlr4-python3-runtime==4.11", "antlr4-python3-runtime", "4.11")
# by the beginning of a task's name; the parser of MATH's answers needs antlr4 4.11, Hydra antlr4 4.9
NEEDS: Mapping[str, tuple[Package, ...]] = {
    "leaderboard_math": (Package("math_verify", "math-verify"), Package("sympy", "sympy"), _ANTLR),
    "leaderboard_ifeval": (
        Package("langdetect", "langdetect"),
        Package("immutabledict", "immutabledict"),
        Package("nltk", "nltk>=3.9.1"),
        Package("pkg_resources", "setuptools<81"),
    ),
}


def needs(task: str) -> tuple[Package, ...]:
    """List what a task imports beyond LM Eval, as far as it is known before the task loads."""
    return next((packages for start, packages in NEEDS.items() if task.startswith(start)), ())


def above_chance(score: float, chance: float) -> float:
    """Scale ``score`` (0 to 1) so that guessing gets 0 and 100 is everything right."""
    return 100 * max(0.0, score - chance) / (1 - chance)


def board_score(name: str, row: Row, results: Mapping[str, Any]) -> float | None:
    """Compute the score on the scale of leaderboard version 2, 0 to 100; None for other tasks.

    Args:
        name: of the task.
        row: its column.
        results: LM Eval's, of this task alone.
    """
    if row not in BOARDS[V2]:
        return None
    if isinstance(row.chance, float):
        return above_chance(_score(row, results, name), row.chance)
    parts = [above_chance(_score(row, results, leaf), _chance(row, results, leaf)) for leaf in results["n-samples"]]
    return sum(parts) / len(parts)


def _score(row: Row, results: Mapping[str, Any], name: str) -> float:
    scores = results.get("groups", {}).get(name) or results["results"][name]
    return sum(float(scores[f"{metric},none"]) for metric in row.metrics) / len(row.metrics)


def _chance(row: Row, results: Mapping[str, Any], leaf: str) -> float:
    if isinstance(row.chance, Mapping):
        return row.chance[leaf]
    return 1 / len(results["configs"][leaf]["doc_to_choice"])
