"""The two Open LLM Leaderboards as data: tasks, shots, what is read of each task, what it needs, what chance gets.

Version 2 (2024): the group ``leaderboard`` of the harness (``lm_eval/tasks/leaderboard/README.md``), whose tasks carry
their shots themselves. Version 1 (2023): the group ``openllm`` (``lm_eval/tasks/benchmarks/openllm.yaml``); its tasks
run with other shots when they are named alone, so the shots are given here. Of TruthfulQA that board read ``mc2``.

Scores of version 2 are also shown as the board showed them, above chance and up to 100:
https://huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Task names of ours: they expand to the tasks of a board.
V1, V2 = "leaderboard_v1", "leaderboard_v2"


@dataclass(frozen=True)
class Package:
    """Something that a task imports and the harness itself does not need.

    Args:
        module: as it is imported.
        pip: as it is installed.
        distribution: whose version matters; None where any will do.
        version: how that version has to begin.
    """

    module: str
    pip: str
    distribution: str | None = None
    version: str = ""


@dataclass(frozen=True)
class Row:
    """One column of a leaderboard.

    Args:
        task: name of the harness's task or group.
        shots: examples in the prompt.
        metrics: of the harness, with the filter where a task has several; the column is their mean.
        by_subject: whether the column is the plain mean of the subtasks, not weighted by their sizes.
        chance: what guessing gets: a number for the whole, numbers by subtask, or None where each subtask of the
            harness lists its choices.
        carries_shots: whether the harness's own definition of the task has these shots.
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
# By the beginning of a task's name. The parser of MATH's answers cannot share an environment with Hydra's antlr4 4.9.
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
    """What a task imports beyond the harness, as far as it is known before the task loads."""
    return next((packages for start, packages in NEEDS.items() if task.startswith(start)), ())
