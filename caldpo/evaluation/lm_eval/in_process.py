"""Run LM Eval in this process on the policy in memory, and undo its changes to the process."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caldpo.data.chat_template import bound_template
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.lm_eval.installation import OTHER_ENVIRONMENT
from caldpo.evaluation.lm_eval.task_index import task_manager
from caldpo.evaluation.lm_eval.task_plan import PAIRS, PlannedTask, TaskResults, pairs_task, require_some, write_samples
from caldpo.models.model_forward import evaluating
from caldpo.models.prompt_batching import padded_batch_size

if TYPE_CHECKING:
    from caldpo.evaluation.suites.leaderboard import Leaderboard

_DATA_REMEDY = (
    "data sets come from the Hugging Face hub: connect once (and log in, if a set is gated), or set HF_HOME to a cache"
    " that holds it; leaderboard.tasks=[held_out_pairs] needs no network"
)


def run_in_process(plan: list[PlannedTask], policy: EvaluatedPolicy, suite: Leaderboard, shipped: Path) -> TaskResults:
    """Run the tasks on the policy in memory; load the data of all tasks before the policy.

    ``shipped`` is the folder of LM Eval's tasks.

    Raises:
        CaldpoError: a task that was named itself cannot load, or no task can.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _log_captured() as log, _generators_restored(policy.device):
        manager = task_manager((t.name for t in plan if t.name != PAIRS), suite.own_tasks, shipped)
        loaded, left_out = _load(plan, manager, policy)
        require_some(loaded, left_out, _DATA_REMEDY)
        results: list[tuple[PlannedTask, Mapping[str, Any]]] = []
        with evaluating(policy.model) as model:
            with policy.context():
                batch = padded_batch_size(model, suite.batch_size or policy.batch, device=policy.device)
            lm = HFLM(
                pretrained=model,
                tokenizer=bound_template(copy.deepcopy(policy.tokenizer)),  # it may get a padding token
                batch_size=batch,
                mixed_precision_dtype=_autocast_dtype(policy),
            )
            for task, objects in loaded:
                output = simple_evaluate(
                    lm,
                    tasks=objects,
                    num_fewshot=task.shots,
                    batch_size=batch,
                    limit=suite.limit,
                    bootstrap_iters=suite.bootstrap_iters,
                    apply_chat_template=task.templated,
                    fewshot_as_multiturn=task.templated and suite.fewshot_as_multiturn,
                    log_samples=suite.log_samples,
                    task_manager=manager,
                )
                if suite.log_samples:
                    write_samples(policy.folder, output.pop("samples"))
                results.append((task, json.loads(json.dumps(output, default=_plain))))
    return TaskResults(results, left_out, count_truncations(log.getvalue()))


def count_truncations(log: str) -> int:
    """Count LM Eval's warnings of prompts that were longer than the model's context."""
    return sum("truncat" in line.lower() for line in log.splitlines())


def _load(
    plan: list[PlannedTask], manager: Any, policy: EvaluatedPolicy
) -> tuple[list[tuple[PlannedTask, list[Any]]], dict[str, str]]:
    """Load LM Eval's task objects with their data; leave out tasks of a leaderboard that fail."""
    loaded, left_out = [], {}
    for task in plan:
        try:
            built = manager.load([pairs_task(policy) if task.name == PAIRS else task.name])
        except Exception as error:  # data sets, the hub and the tasks' own code each have errors of their own
            if task.board is None:
                remedy = "check its yaml and what that names, if it is your own"
                if isinstance(error, ImportError | OSError):
                    remedy = OTHER_ENVIRONMENT if isinstance(error, ImportError) else _DATA_REMEDY
                raise CaldpoError(_reason(error), key="leaderboard.tasks", value=task.name, remedy=remedy) from error
            left_out[task.name] = _reason(error)
            continue
        for leaf in built["tasks"].values():
            _require_safe(task.name, leaf)
        group = built["groups"].get(task.name)
        loaded.append((task, [group] if group else list(built["tasks"].values())))
    return loaded, left_out


def _require_safe(name: str, leaf: Any) -> None:
    if getattr(leaf, "UNSAFE_CODE", False):
        raise CaldpoError(
            "runs code that a model writes, which needs a sandbox",
            key="leaderboard.tasks",
            value=name,
            remedy="run it by lm_eval's own command line in one, on the run's policy/ folder",
        )
    if getattr(leaf, "MULTIMODAL", False):
        raise CaldpoError("shows images, which this model does not take", key="leaderboard.tasks", value=name)


def _reason(error: Exception) -> str:
    """Describe a failure to load; errors of files, the network, data sets and the hub are OSErrors."""
    text = " ".join(str(error).split()) or type(error).__name__
    problem = "its data cannot be loaded" if isinstance(error, OSError) else "cannot be loaded"
    return f"{problem}: {text[:300].rstrip('.')}"


def _autocast_dtype(policy: EvaluatedPolicy) -> torch.dtype | None:
    """Return the dtype of mixed precision; LM Eval opens its own context around each forward pass."""
    with policy.context():
        device = policy.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


@contextmanager
def _log_captured() -> Iterator[io.StringIO]:
    """Capture LM Eval's warnings instead of printing them; show progress bars only on a terminal."""
    logger, log = logging.getLogger("lm_eval"), io.StringIO()
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    logger.handlers, logger.propagate = [logging.StreamHandler(log)], False
    logger.setLevel(logging.WARNING)
    stderr = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with stderr:
            yield log
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@contextmanager
def _generators_restored(device: torch.device) -> Iterator[None]:
    """Restore Python's, numpy's and torch's global generators, which LM Eval seeds."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
