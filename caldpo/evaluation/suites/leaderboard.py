"""Run benchmarks of the Language Model Evaluation Harness (LM Eval): the cost of alignment in knowledge and skill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from caldpo.config.bounds import NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.lm_eval.in_process import run_in_process
from caldpo.evaluation.lm_eval.installation import OTHER_ENVIRONMENT, Installation, find_installation
from caldpo.evaluation.lm_eval.leaderboards import BOARDS, V2
from caldpo.evaluation.lm_eval.read_results import Z95, read_task, wrong_shots
from caldpo.evaluation.lm_eval.subprocess_run import run_subprocess
from caldpo.evaluation.lm_eval.task_index import require_names
from caldpo.evaluation.lm_eval.task_plan import (
    OWN_NAMES,
    PlannedTask,
    TaskResults,
    plan_tasks,
    runnable_tasks,
)
from caldpo.evaluation.suite_base import Measure, Result, Suite


@validated
@dataclass(frozen=True, kw_only=True)
class Leaderboard(Suite):
    """Tasks of LM Eval with the policy only; ``conf/suite/leaderboard.yaml`` explains the keys."""

    name: ClassVar[str] = "leaderboard"

    tasks: list[str]
    num_fewshot: NonNegativeInt | None = None
    limit: PositiveInt | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    include_path: str | None = None
    backend: Literal["hf", "vllm"] = "hf"
    python: str | None = None
    batch_size: PositiveInt | None = None
    bootstrap_iters: NonNegativeInt = 100_000
    log_samples: bool = False

    def check(self) -> None:
        installation = find_installation(self.python)
        if self.backend == "vllm" and installation.versions["vllm"] is None:
            raise CaldpoError(
                f"{installation.name} has no vLLM",
                key="leaderboard.backend",
                value="vllm",
                remedy="create an environment with pip install 'lm_eval[vllm]', and name its interpreter:"
                " leaderboard.python=PATH/bin/python",
            )
        if self.own_tasks is not None and not self.own_tasks.is_dir():
            raise CaldpoError("no such folder", key="leaderboard.include_path", value=self.include_path)
        if not self.tasks:
            raise CaldpoError("no task is named", key="leaderboard.tasks", remedy=f"choose {', '.join(OWN_NAMES)}, ...")
        require_names([t for t in self.tasks if t not in OWN_NAMES], self.own_tasks, installation.tasks, also=OWN_NAMES)
        self._plan(installation)

    def check_policy(self, policy: EvaluatedPolicy) -> None:
        if self.apply_chat_template and not policy.tokenizer.chat_template:
            raise CaldpoError(
                "the tokenizer of this model has no chat template",
                key="leaderboard.apply_chat_template",
                value="true",
                remedy="leave it out: the model was not trained for conversations",
            )

    def run(self, policy: EvaluatedPolicy) -> Result:
        installation = find_installation(self.python)
        plan, left_out = self._plan(installation)
        if self.python is None and self.backend == "hf":
            done = run_in_process(plan, policy, self, installation.tasks)
        else:
            done = run_subprocess(plan, policy, self, installation.python)
        measures: dict[str, Measure] = {}
        tasks: dict[str, Any] = {}
        for task, results in done.results:
            task_measures, tasks[task.name] = read_task(task, results)
            measures |= task_measures
        left_out = {**left_out, **done.left_out}
        measures |= averages(plan, measures, tasks)
        return Result(
            measures=measures,
            examples=sum(n["effective"] for task in tasks.values() for n in task["n"].values()),
            details={
                "lm_eval": installation.versions["lm_eval"],
                "backend": self.backend,
                "python": installation.python,
                "limit": self.limit,
                "interval": f"value +- {Z95} standard errors of LM Eval (normal approximation)",
                "tasks": tasks,
                "left_out": left_out,
            },
            notes=self._notes(done, left_out),
            reusable=not done.left_out,  # data that was out of reach may load the next time
        )

    def settings(self) -> dict[str, Any]:
        installation = find_installation(self.python)
        left_out = sorted(self._plan(installation)[1])  # since packages are missing
        return asdict(self) | {"lm_eval": installation.versions["lm_eval"], "left_out": left_out}

    @property
    def own_tasks(self) -> Path | None:
        """Folder of the user's own tasks."""
        return None if self.include_path is None else Path(self.include_path).expanduser().absolute()

    def _plan(self, installation: Installation) -> tuple[list[PlannedTask], Mapping[str, str]]:
        plan = plan_tasks(self.tasks, self.num_fewshot, templated=self.apply_chat_template)
        return runnable_tasks(plan, installation)

    def _notes(self, done: TaskResults, left_out: Mapping[str, str]) -> list[str]:
        notes = [f"{name} was left out: {reason}" for name, reason in left_out.items()]
        if self.python is None and any(reason.startswith("needs") for reason in left_out.values()):
            notes.append(f"for tasks whose packages this environment lacks, {OTHER_ENVIRONMENT}")
        if self.limit is not None:
            notes.append(
                f"limit={self.limit}: not the figures of a leaderboard, since only the first questions were asked"
            )
        if done.truncations:
            notes.append(
                f"LM Eval truncated prompts longer than the model's context, and warned {done.truncations} times"
            )
        for task, results in done.results:
            if shots := wrong_shots(task, results):
                expected = task.row.shots if task.row else None
                notes.append(f"{task.name} ran with {sorted(shots)} examples where the leaderboard has {expected}")
        return notes


def averages(
    plan: Sequence[PlannedTask], measures: Mapping[str, Measure], tasks: Mapping[str, Any]
) -> dict[str, Measure]:
    """Compute the average column of each complete leaderboard; version 2's is of scores above chance."""
    columns: dict[str, Measure] = {}
    for board, rows in BOARDS.items():
        names = [row.task for row in rows]
        if not all(name in tasks for name in names) or not any(task.board == board for task in plan):
            continue
        if board == V2:
            scores = [tasks[name]["normalised"] for name in names]
            scale = ", each scaled so that guessing gets 0 (the tasks' own measures are not)"
        else:
            scores, scale = [100 * measures[name].value for name in names], " in per cent"
        columns[board] = Measure(
            value=sum(scores) / len(scores),
            title=f"{board}, average",
            unit="0 to 100",
            meaning=f"mean of the leaderboard's columns{scale}",
            better="higher",
            main=True,
        )
    return columns
