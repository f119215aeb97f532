"""Run LM Eval's command line, in another environment or for another backend, on a folder with the policy.

MATH needs another environment: the parser of its answers and Hydra need different versions of antlr4.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.lm_eval.in_process import count_truncations
from caldpo.evaluation.lm_eval.task_plan import PAIRS, SAMPLES, PlannedTask, TaskResults, pairs_task, require_some
from caldpo.models.adapted_policy import is_adapted
from caldpo.models.merged_adapter import save_merged
from caldpo.security.redacted_streams import HUB_TOKENS, environment_without_secrets
from caldpo.utils.atomic_io import atomic_file

if TYPE_CHECKING:
    from caldpo.evaluation.suites.leaderboard import Leaderboard

LOG = "leaderboard.log"  # output of the command line, beside the results
_DTYPES = {"bf16-true": "bfloat16", "64-true": "float64"}
_MIXED_DTYPES = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}


def run_subprocess(
    plan: list[PlannedTask], policy: EvaluatedPolicy, suite: Leaderboard, python: str | None
) -> TaskResults:
    """Run each task by a command of its own, on the run's export or on a copy of the policy in a temporary folder.

    ``python`` is the interpreter of another environment.

    Raises:
        CaldpoError: the command failed for a task that was named itself, or for all.
    """
    results: list[tuple[PlannedTask, Mapping[str, Any]]] = []
    left_out: dict[str, str] = {}
    log = policy.folder / LOG
    log.write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="caldpo-lm-eval-") as name:
        workspace = Path(name)
        _write_model(policy, workspace)
        for number, task in enumerate(plan, start=1):
            print(f"  {task.name} ({number} of {len(plan)}), its output goes to {log}", file=sys.stderr)
            command = [python or sys.executable, *_arguments(task, policy, suite, workspace)]
            output = _run(command, workspace / task.name, log)
            if output is not None:
                results.append((task, output))
                if suite.log_samples:
                    _copy_samples(workspace / task.name, policy.folder / SAMPLES)
            elif task.board is not None:
                left_out[task.name] = f"failed: {_last_line(log)}"
            else:
                raise CaldpoError(
                    f"LM Eval's command line failed: {_last_line(log)}",
                    key="leaderboard.tasks",
                    value=task.name,
                    remedy=f"read {log}; the command was {' '.join(command)}",
                )
    require_some(results, left_out, f"read {log}")
    return TaskResults(results, left_out, count_truncations(log.read_text(encoding="utf-8", errors="replace")))


def _run(command: list[str], output: Path, log: Path) -> Mapping[str, Any] | None:
    """Run a command in the folder above ``output`` and read the results' file below it; None if it failed."""
    environment = {
        **environment_without_secrets(*HUB_TOKENS),
        "LMEVAL_LOG_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("ab") as stream:
        done = subprocess.run(
            command, cwd=output.parent, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False
        )
    files = sorted(output.rglob("results_*.json"))
    if done.returncode or not files:
        return None
    results: Mapping[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))
    return results


def _arguments(task: PlannedTask, policy: EvaluatedPolicy, suite: Leaderboard, workspace: Path) -> list[str]:
    """Build the command line after the interpreter; paths are relative to ``workspace``, its working folder."""
    model = {"pretrained": "policy", "tokenizer": "tokenizer", "dtype": _DTYPES.get(policy.precision, "auto")}
    if suite.backend == "hf" and policy.precision in _MIXED_DTYPES:
        model["mixed_precision_dtype"] = _MIXED_DTYPES[policy.precision]
    if policy.target.of_run("model.trust_remote_code", False):
        model["trust_remote_code"] = "True"
    name = task.name
    if name == PAIRS:
        name = f"{PAIRS}.yaml"
        (workspace / name).write_text(yaml.safe_dump(pairs_task(policy)), encoding="utf-8")
    arguments = {
        "--model": suite.backend,
        "--model_args": ",".join(f"{key}={value}" for key, value in model.items()),
        "--device": None if suite.backend == "vllm" else str(policy.device),
        "--batch_size": "auto" if suite.backend == "vllm" else suite.batch_size or policy.batch,
        "--num_fewshot": task.shots,
        "--limit": suite.limit,
        "--include_path": suite.own_tasks,
    }
    line = [part for key, value in arguments.items() if value is not None for part in (key, str(value))]
    if task.templated:
        line += ["--apply_chat_template", "--fewshot_as_multiturn", *([] if suite.fewshot_as_multiturn else ["false"])]
    if suite.log_samples:
        line.append("--log_samples")
    return ["-m", "lm_eval", *line, "--tasks", name, "--output_path", task.name]


def _write_model(policy: EvaluatedPolicy, workspace: Path) -> None:
    """Write ``policy`` and ``tokenizer``: a link to the run's export if it has one without an adapter, else merged."""
    policy.tokenizer.save_pretrained(workspace / "tokenizer")
    export = policy.weights.path
    if export is not None and export.is_dir() and not (export / "adapter_config.json").is_file():
        (workspace / "policy").symlink_to(export.absolute(), target_is_directory=True)
        return
    if is_adapted(policy.model):
        save_merged(policy.model, workspace / "policy")
    else:
        policy.model.save_pretrained(workspace / "policy")


def _copy_samples(output: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for file in output.rglob("samples_*.jsonl"):
        # LM Eval appends the time to the task's name
        with atomic_file(folder / f"{file.stem.removeprefix('samples_').rsplit('_', 1)[0]}.jsonl") as copied:
            copied.write(file.read_bytes())


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300].rstrip(".") if lines else "no output"
