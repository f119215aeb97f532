"""The harness in this process, on the policy in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from caldpo.data.chat_template import bound_template
from caldpo.errors import CaldpoError
from caldpo.evaluation.evaluated_policy import EvaluatedPolicy
from caldpo.evaluation.lm_eval.installation import OTHER
from caldpo.evaluation.lm_eval.isolation import listening, same_generators
from caldpo.evaluation.lm_eval.run_options import Options, write_samples
from caldpo.evaluation.lm_eval.task_index import task_manager
from caldpo.evaluation.lm_eval.task_plan import PAIRS, Wanted, require_some
from caldpo.models.model_forward import evaluating
from caldpo.models.sampling import padded_batch_size

_DATA = (
    "data sets come from the Hugging Face hub: connect once (and log in, if a set is gated), or set HF_HOME to a cache"
    " that holds it; leaderboard.tasks=[held_out_pairs] needs no network"
)


@dataclass(frozen=True)
class Ran:
    """What the harness found.

    Args:
        found: its results of each task.
        left_out: why other tasks of a leaderboard are not among them.
        cuts: its warnings of prompts longer than the model's context.
    """

    found: list[tuple[Wanted, Mapping[str, Any]]]
    left_out: Mapping[str, str]
    cuts: int


def run_inside(plan: list[Wanted], subject: EvaluatedPolicy, options: Options) -> Ran:
    """Run the tasks on the policy in memory.

    Data of all tasks is had before the policy loads. What the harness changes (random generators, the model's mode)
    is as before afterwards.

    Raises:
        CaldpoError: a task that was named itself cannot be had, or none can.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with listening() as cuts, same_generators(subject.device):
        manager = task_manager((t.name for t in plan if t.name != PAIRS), options.own, options.shipped)
        loaded, left_out = _load(plan, manager, options)
        require_some(loaded, left_out, _DATA)
        found: list[tuple[Wanted, Mapping[str, Any]]] = []
        with evaluating(subject.policy) as policy:
            with subject.context():
                batch = padded_batch_size(policy, options.batch, device=subject.device)
            model = HFLM(
                pretrained=policy,
                tokenizer=bound_template(copy.deepcopy(subject.tokenizer)),  # it may be given a padding token
                batch_size=batch,
                mixed_precision_dtype=_autocast_dtype(subject),
            )
            for task, objects in loaded:
                results = simple_evaluate(
                    model,
                    tasks=objects,
                    num_fewshot=task.shots,
                    batch_size=batch,
                    limit=options.limit,
                    bootstrap_iters=options.bootstrap,
                    apply_chat_template=options.templated(task),
                    fewshot_as_multiturn=options.templated(task) and options.multiturn,
                    log_samples=options.samples,
                    task_manager=manager,
                )
                if options.samples:
                    write_samples(subject.folder, results.pop("samples"))
                found.append((task, json.loads(json.dumps(results, default=_plain))))
    return Ran(found, left_out, cuts.count)


def _load(plan: list[Wanted], manager: Any, options: Options) -> tuple[list[tuple[Wanted, list[Any]]], dict[str, str]]:
    """The harness's tasks with their data."""
    loaded, left_out = [], {}
    for task in plan:
        try:
            built = manager.load([dict(options.pairs) if task.name == PAIRS and options.pairs else task.name])
        except Exception as error:  # data sets, the hub and the tasks' own code each have errors of their own
            if task.board is None:
                raise _unavailable(task.name, error) from error
            left_out[task.name] = _reason(error)
            continue
        for leaf in built["tasks"].values():
            _require_harmless(task.name, leaf)
        group = built["groups"].get(task.name)
        loaded.append((task, [group] if group else list(built["tasks"].values())))
    return loaded, left_out


def _require_harmless(name: str, leaf: Any) -> None:
    if getattr(leaf, "UNSAFE_CODE", False):
        raise CaldpoError(
            "runs the code that a model writes, which wants a machine of its own",
            key="leaderboard.tasks",
            value=name,
            remedy="run it by lm_eval's own command line there, on the run's policy/ folder",
        )
    if getattr(leaf, "MULTIMODAL", False):
        raise CaldpoError("shows images, which this model does not take", key="leaderboard.tasks", value=name)


def _unavailable(name: str, error: Exception) -> CaldpoError:
    if isinstance(error, ImportError):
        remedy = OTHER
    else:
        remedy = _DATA if isinstance(error, OSError) else "mend its yaml and what that names, if the task is your own"
    return CaldpoError(_reason(error), key="leaderboard.tasks", value=name, remedy=remedy)


def _reason(error: Exception) -> str:
    """A failure to load in words; those of files and of the network are OSErrors, also of data sets and of the hub."""
    text = " ".join(str(error).split()) or type(error).__name__
    what = "its data cannot be had" if isinstance(error, OSError) else "cannot be loaded"
    return f"{what}: {text[:300].rstrip('.')}"


def _autocast_dtype(subject: EvaluatedPolicy) -> torch.dtype | None:
    """The dtype of mixed precision; the harness opens its own context around each forward pass."""
    with subject.context():
        device = subject.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
