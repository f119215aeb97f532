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

# names of this project, which expand to the tasks of a board
V1, V2 = "leaderboard_v1", "leaderboard_v2"


@dataclass(frozen=True)
class Row:
    """One column of a leaderboard."""

    task: str  # name of LM Eval's task or group
    shots: int  # examples in the prompt
    metrics: tuple[str, ...]  # of LM Eval, with the filter where a task has several; the column is their mean
    by_subject: bool = False  # average the subtasks plainly, not weighted by their sizes
    # score of guessing: one number, numbers by subtask, or None where each subtask of LM Eval lists its choices
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
