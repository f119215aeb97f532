"""What both ways of running the harness are told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caldpo.evaluation.lm_eval.task_plan import PAIRS, Wanted
from caldpo.utils.atomic_io import write_text

SAMPLES = "leaderboard_samples"  # folder beside the results: every question and answer, a file per task


@dataclass(frozen=True, kw_only=True)
class Options:
    """How tasks are run.

    Args:
        own: folder of the user's own tasks.
        shipped: folder of those that come with the harness.
        limit: questions of each task, the first ones; None: all.
        chat_template: whether questions are put through the model's chat template.
        multiturn: whether the examples then are turns of a conversation.
        batch: questions of a forward pass.
        bootstrap: resamples of the harness for the standard errors that have no formula.
        samples: whether questions and answers are kept.
        pairs: configuration of the task of held-out pairs, where it is wanted.
    """

    own: Path | None
    shipped: Path
    limit: int | None
    chat_template: bool
    multiturn: bool
    batch: int
    bootstrap: int
    samples: bool
    pairs: Mapping[str, Any] | None = None

    def templated(self, task: Wanted) -> bool:
        """Whether the chat template is applied; held-out pairs are written out as training wrote them."""
        return self.chat_template and task.name != PAIRS


def write_samples(folder: Path, samples: Mapping[str, Iterable[Any]]) -> None:
    """Keep questions and answers, a line each, a file per task."""
    (folder / SAMPLES).mkdir(exist_ok=True)
    for name, rows in samples.items():
        lines = [json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in rows]
        write_text(folder / SAMPLES / f"{name}.jsonl", "".join(lines))
