"""Plan which tasks of LM Eval run and how, among them the run's held-out pairs as a task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldpo.data.chat_template import Renderer
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.lm_eval.installation import OTHER_ENVIRONMENT, Installation
from caldpo.evaluation.lm_eval.leaderboards import BOARDS, V2, Row
from caldpo.utils.atomic_io import write_text

PAIRS = "held_out_pairs"  # a task of this project, made of the run's own data
OWN_NAMES = (*BOARDS, PAIRS)
SAMPLES = "leaderboard_samples"  # folder beside the results: every question and answer, one file per task
_ROWS = {row.task: row for rows in BOARDS.values() for row in rows} | {PAIRS: Row(PAIRS, 0, ("acc",))}


@dataclass(frozen=True)
class PlannedTask:
    """One task, group or tag of LM Eval to run."""

    name: str
    shots: int | None  # None leaves them to the task
    board: str | None = None  # its leaderboard; None if the task was named itself
    templated: bool = False  # put questions through the model's chat template

    @property
    def row(self) -> Row | None:
        """Which metrics are its score, also where it was named itself; None takes what it reports."""
        return _ROWS.get(self.name)


@dataclass(frozen=True)
class TaskResults:
    """LM Eval's results of each task, the reasons of the leaderboard tasks without any, and warnings of truncation."""

    results: list[tuple[PlannedTask, Mapping[str, Any]]]
    left_out: Mapping[str, str]
    truncations: int


def plan_tasks(tasks: Sequence[str], shots: int | None, *, templated: bool = False) -> list[PlannedTask]:
    """Expand names of leaderboards, and of tasks, groups or tags of LM Eval, to tasks, each once.

    A leaderboard's task has the leaderboard's shots in any case. Held-out pairs are already written out as in training,
    and never ``templated``.
    """
    of_boards = [
        PlannedTask(row.task, None if board == V2 else row.shots, board, templated)
        for board in BOARDS
        if board in tasks
        for row in BOARDS[board]
    ]
    named = [
        PlannedTask(name, None if name == PAIRS else shots, templated=templated and name != PAIRS)
        for name in tasks
        if name not in BOARDS
    ]
    return list({task.name: task for task in reversed([*of_boards, *named])}.values())[::-1]


def runnable_tasks(
    plan: Sequence[PlannedTask], installation: Installation
) -> tuple[list[PlannedTask], Mapping[str, str]]:
    """Split off the leaderboard tasks whose packages are missing, with the reason.

    Raises:
        CaldpoError: a task that was named itself lacks packages, or all tasks do.
    """
    left_out: dict[str, str] = {}
    for task in plan:
        missing = installation.missing_for(task.name)
        if missing and task.board is None:
            raise CaldpoError(missing, key="leaderboard.tasks", value=task.name, remedy=OTHER_ENVIRONMENT)
        if missing:
            left_out[task.name] = missing
    runnable = [task for task in plan if task.name not in left_out]
    require_some(runnable, left_out, OTHER_ENVIRONMENT)
    return runnable, left_out


def require_some(tasks: Sequence[object], left_out: Mapping[str, str], remedy: str) -> None:
    """Require one task at least.

    Raises:
        CaldpoError: every task was left out.
    """
    if not tasks:
        reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise CaldpoError(f"none of the tasks can run here: {reasons}", key="leaderboard.tasks", remedy=remedy)


def pairs_task(policy: EvaluatedPolicy) -> dict[str, Any]:
    """Write the held-out pairs as a multiple-choice task, and return its configuration.

    An offline task, and a check of log-probs: ``acc`` is the share of pairs whose chosen response has the higher summed
    log-prob under the policy, ``acc_norm`` that of the higher log-prob per character. No reference is subtracted, and
    the end-of-text token, which LM Eval does not score, is not counted. Pairs are not truncated; the tokenizer decides
    about BOS. Conversations are written out by the chat template. The chosen response is the first choice of every
    second pair, so that a model which always takes the first gets half of them right.
    """
    file = policy.folder / f"{PAIRS}.jsonl"
    renderer = Renderer(policy.tokenizer)
    with file.open("w", encoding="utf-8") as lines:
        for number, pair in enumerate(policy.texts):
            texts, label = renderer.pair(pair), number % 2
            choices = [texts.chosen, texts.rejected][:: -1 if label else 1]
            lines.write(json.dumps({"prompt": texts.prompt, "choices": choices, "label": label}) + "\n")
    return {
        "task": PAIRS,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.absolute())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": "",  # a response begins where its prompt ends
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1},
    }


def write_samples(folder: Path, samples: Mapping[str, Iterable[Any]]) -> None:
    """Write questions and answers, one JSON line each, one file per task."""
    (folder / SAMPLES).mkdir(exist_ok=True)
    for name, rows in samples.items():
        lines = [json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in rows]
        write_text(folder / SAMPLES / f"{name}.jsonl", "".join(lines))
