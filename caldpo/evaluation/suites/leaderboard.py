"""Benchmarks of the Language Model Evaluation Harness: what alignment costs in knowledge and skill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from caldpo.config.bounds import NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.lm_eval.in_process import Ran, run_inside
from caldpo.evaluation.lm_eval.installation import OTHER, Installation, find_installation
from caldpo.evaluation.lm_eval.leaderboards import BOARDS, V2
from caldpo.evaluation.lm_eval.pairs_task import pairs_task
from caldpo.evaluation.lm_eval.read_results import Z95, read_task, wrong_shots
from caldpo.evaluation.lm_eval.run_options import Options
from caldpo.evaluation.lm_eval.subprocess_run import run_outside
from caldpo.evaluation.lm_eval.task_index import require_names
from caldpo.evaluation.lm_eval.task_plan import OURS, PAIRS, Wanted, spell_out, without_packages
from caldpo.evaluation.suite_base import Suite
from caldpo.evaluation.suite_result import Measure, Result


@validated
@dataclass(frozen=True, kw_only=True)
class Leaderboard(Suite):
    """Tasks of the harness with the policy alone; there is no reference in them.

    Args:
        tasks: ``leaderboard_v2``, ``leaderboard_v1``, ``held_out_pairs`` (the run's own pairs, offline), and any task,
            group or tag of the harness.
        num_fewshot: examples in the prompt of tasks that are named themselves; None leaves it to each task.
        limit: questions of each task, the first ones; None: all.
        apply_chat_template: put questions through the model's chat template.
        fewshot_as_multiturn: with the template, examples are turns of the conversation.
        include_path: folder of tasks of one's own, in the harness's yaml.
        backend: ``hf`` is the policy in memory; ``vllm`` runs the harness's command line on the exported policy.
        python: interpreter of another environment, whose command line of the harness is run on the exported policy.
        batch_size: questions of a forward pass; None takes ``batch``.
        bootstrap_iters: resamples for standard errors that have no formula; not with ``python`` or vLLM, whose
            command line has no such key.
        log_samples: keep every question and answer.
    """

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
        if self.backend == "vllm" and not installation.has_vllm:
            raise CaldpoError(
                f"{installation.where} has no vLLM",
                key="leaderboard.backend",
                value="vllm",
                remedy="make an environment with pip install 'lm_eval[vllm]', and name its interpreter:"
                " leaderboard.python=PATH/bin/python",
            )
        if self._own is not None and not self._own.is_dir():
            raise CaldpoError("no such folder", key="leaderboard.include_path", value=self.include_path)
        if not self.tasks:
            raise CaldpoError("there is no task", key="leaderboard.tasks", remedy=f"choose {', '.join(OURS)}, ...")
        require_names([t for t in self.tasks if t not in OURS], self._own, installation.tasks, also=OURS)
        self._plan(installation)

    def check_subject(self, subject: EvaluatedPolicy) -> None:
        if self.apply_chat_template and not subject.tokenizer.chat_template:
            raise CaldpoError(
                "the tokenizer of this model has no chat template",
                key="leaderboard.apply_chat_template",
                value="true",
                remedy="leave it out: the model was not made for conversations",
            )

    def run(self, subject: EvaluatedPolicy) -> Result:
        installation = find_installation(self.python)
        plan, left_out = self._plan(installation)
        options = self._options(subject, installation)
        if self.python is None and self.backend == "hf":
            ran = run_inside(plan, subject, options)
        else:
            ran = run_outside(plan, subject, options, installation.python, self.backend)
        measures: dict[str, Measure] = {}
        tasks: dict[str, Any] = {}
        for task, results in ran.found:
            read, tasks[task.name] = read_task(task, results, templated=options.templated(task))
            measures |= read
        left_out = {**left_out, **ran.left_out}
        measures |= averages(plan, measures, tasks)
        return Result(
            measures=measures,
            examples=sum(n["effective"] for task in tasks.values() for n in task["n"].values()),
            details={
                "harness": installation.version,
                "backend": self.backend,
                "python": installation.python,
                "limit": self.limit,
                "interval": f"value +- {Z95} standard errors of the harness (normal approximation)",
                "tasks": tasks,
                "left_out": left_out,
            },
            notes=self._notes(ran, left_out),
            settled=not ran.left_out,  # data that was out of reach may be there the next time
        )

    def settings(self) -> dict[str, Any]:
        installation = find_installation(self.python)
        absent = sorted(self._plan(installation)[1])  # for want of packages
        return asdict(self) | {"harness": installation.version, "absent": absent}

    @property
    def _own(self) -> Path | None:
        return None if self.include_path is None else Path(self.include_path).expanduser().absolute()

    def _plan(self, installation: Installation) -> tuple[list[Wanted], Mapping[str, str]]:
        return without_packages(spell_out(self.tasks, self.num_fewshot), installation)

    def _options(self, subject: EvaluatedPolicy, installation: Installation) -> Options:
        wanted = PAIRS in self.tasks
        return Options(
            own=self._own,
            shipped=installation.tasks,
            limit=self.limit,
            chat_template=self.apply_chat_template,
            multiturn=self.fewshot_as_multiturn,
            batch=self.batch_size or subject.batch,
            bootstrap=self.bootstrap_iters,
            samples=self.log_samples,
            pairs=pairs_task(subject.texts, subject.tokenizer, subject.folder) if wanted else None,
        )

    def _notes(self, ran: Ran, left_out: Mapping[str, str]) -> list[str]:
        notes = [f"{name} was left out: {reason}" for name, reason in left_out.items()]
        if self.python is None and any(reason.startswith("needs") for reason in left_out.values()):
            notes.append(f"for tasks whose packages this environment lacks, {OTHER}")
        if self.limit is not None:
            notes.append(f"limit={self.limit}: these are no leaderboard figures, only the first questions were asked")
        if ran.cuts:
            notes.append(
                f"the harness warned {ran.cuts} times of prompts longer than the model's context, and cut them"
            )
        for task, results in ran.found:
            if shots := wrong_shots(task, results):
                asked = task.row.shots if task.row else None
                notes.append(f"{task.name} ran with {sorted(shots)} examples where the leaderboard has {asked}")
        return notes


def averages(plan: Sequence[Wanted], measures: Mapping[str, Measure], tasks: Mapping[str, Any]) -> dict[str, Measure]:
    """The average column of each leaderboard of which no task is missing; version 2's is of normalised scores."""
    found: dict[str, Measure] = {}
    for board, rows in BOARDS.items():
        names = [row.task for row in rows]
        if not all(name in tasks for name in names) or not any(task.board == board for task in plan):
            continue
        scores = [tasks[n]["normalised"] if board == V2 else 100 * measures[n].value for n in names]
        found[board] = Measure(
            value=sum(scores) / len(scores),
            title=f"{board}, average",
            unit="0 to 100",
            meaning="mean of the leaderboard's columns"
            + (", each above what guessing gets (the tasks' own measures are not)" if board == V2 else " in per cent"),
            better="higher",
            main=True,
        )
    return found
