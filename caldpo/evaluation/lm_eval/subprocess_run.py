"""The harness's own command line, in another environment or for another backend, on a folder with the policy."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.lm_eval.in_process import Ran
from caldpo.evaluation.lm_eval.isolation import cuts_in
from caldpo.evaluation.lm_eval.run_options import SAMPLES, Options
from caldpo.evaluation.lm_eval.task_plan import PAIRS, Wanted, require_some
from caldpo.models.adapted_policy import is_adapted
from caldpo.security.redacted_streams import HUB_TOKENS, environment_without_secrets
from caldpo.utils.atomic_io import atomic_file

LOG = "leaderboard.log"  # what the command line said, beside the results
_DTYPES = {"bf16-true": "bfloat16", "64-true": "float64"}
_MIXED = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}


def run_outside(
    plan: list[Wanted], subject: EvaluatedPolicy, options: Options, python: str | None, backend: str
) -> Ran:
    """Run each task by a command of its own.

    Args:
        plan: the tasks.
        subject: its policy is read from the run's export, or written into a temporary folder.
        options: see :class:`Options`.
        python: interpreter of the environment; None: this one.
        backend: ``hf`` or ``vllm``.

    Raises:
        CaldpoError: the command failed for a task that was named itself, or for all.
    """
    found: list[tuple[Wanted, Mapping[str, Any]]] = []
    left_out: dict[str, str] = {}
    console = Console(stderr=True)
    log = subject.folder / LOG
    log.write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="caldpo-harness-") as name:
        place = Path(name)
        _write_model(subject, place)
        for number, task in enumerate(plan, start=1):
            console.print(
                f"  {task.name} ({number} of {len(plan)}), its output goes to {log}", highlight=False, soft_wrap=True
            )
            command = [python or sys.executable, *_arguments(task, subject, options, backend, place)]
            results = _run(command, place / task.name, log)
            if results is not None:
                found.append((task, results))
                _keep_samples(task, subject, options, place)
            elif task.board is not None:
                left_out[task.name] = f"failed: {_last_line(log)}"
            else:
                raise _failed(task, command, log)
    require_some(found, left_out, f"read {log}")
    return Ran(found, left_out, cuts_in(log.read_text(encoding="utf-8", errors="replace")))


def _run(command: list[str], output: Path, log: Path) -> Mapping[str, Any] | None:
    """The contents of the results' file below ``output``, or None; the command runs in the folder above."""
    environment = {
        **environment_without_secrets(*HUB_TOKENS),
        "LMEVAL_LOG_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("ab") as said:
        done = subprocess.run(
            command, cwd=output.parent, env=environment, stdout=said, stderr=subprocess.STDOUT, check=False
        )
    files = sorted(output.rglob("results_*.json"))
    if done.returncode or not files:
        return None
    results: Mapping[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))
    return results


def _arguments(task: Wanted, subject: EvaluatedPolicy, options: Options, backend: str, place: Path) -> list[str]:
    """The command line behind the interpreter; paths are plain names in its working folder."""
    model = {"pretrained": "policy", "tokenizer": "tokenizer", "dtype": _DTYPES.get(subject.precision, "auto")}
    if backend == "hf" and subject.precision in _MIXED:
        model["mixed_precision_dtype"] = _MIXED[subject.precision]
    if subject.target.of_run("model.trust_remote_code", False):
        model["trust_remote_code"] = "True"
    name = task.name
    if name == PAIRS:
        name = f"{PAIRS}.yaml"
        (place / name).write_text(yaml.safe_dump(dict(options.pairs or {})), encoding="utf-8")
    arguments = {
        "--model": backend,
        "--model_args": ",".join(f"{key}={value}" for key, value in model.items()),
        "--device": None if backend == "vllm" else str(subject.device),
        "--batch_size": "auto" if backend == "vllm" else options.batch,
        "--num_fewshot": task.shots,
        "--limit": options.limit,
        "--include_path": options.own,
    }
    line = [part for key, value in arguments.items() if value is not None for part in (key, str(value))]
    if options.templated(task):
        line += ["--apply_chat_template", "--fewshot_as_multiturn", *([] if options.multiturn else ["false"])]
    if options.samples:
        line.append("--log_samples")
    return ["-m", "lm_eval", *line, "--tasks", name, "--output_path", task.name]


def _write_model(subject: EvaluatedPolicy, place: Path) -> None:
    """``policy`` and ``tokenizer`` in a folder: the run's export where there is one, with no adapter left to apply."""
    subject.tokenizer.save_pretrained(place / "tokenizer")
    export = subject.weights.path
    if export is not None and export.is_dir() and not (export / "adapter_config.json").is_file():
        (place / "policy").symlink_to(export.absolute(), target_is_directory=True)
        return
    policy: Any = subject.policy
    if is_adapted(policy):
        policy = copy.deepcopy(policy).merge_and_unload()
    policy.save_pretrained(place / "policy")


def _keep_samples(task: Wanted, subject: EvaluatedPolicy, options: Options, place: Path) -> None:
    if not options.samples:
        return
    folder = subject.folder / SAMPLES
    folder.mkdir(exist_ok=True)
    for file in (place / task.name).rglob("samples_*.jsonl"):
        # the harness puts the time behind the task's name
        with atomic_file(folder / f"{file.stem.removeprefix('samples_').rsplit('_', 1)[0]}.jsonl") as kept:
            kept.write(file.read_bytes())


def _failed(task: Wanted, command: list[str], log: Path) -> CaldpoError:
    return CaldpoError(
        f"the harness's command line failed: {_last_line(log)}",
        key="leaderboard.tasks",
        value=task.name,
        remedy=f"read {log}; the command was {' '.join(command)}",
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300].rstrip(".") if lines else "it said nothing"
