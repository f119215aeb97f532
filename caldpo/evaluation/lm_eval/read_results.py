"""Convert LM Eval's results of a task to measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from caldpo.evaluation.lm_eval.leaderboards import BOARDS, V2, above_chance
from caldpo.evaluation.lm_eval.task_plan import PlannedTask
from caldpo.evaluation.suite_base import Measure

Scores = Mapping[str, Any]
Z95 = 1.96  # standard errors on each side of a 95 % interval of the normal distribution
# the score of a task that is on no leaderboard: the first of these that it reports, else its first metric
_PREFERRED = ("acc_norm", "acc", "exact_match", "f1", "mcc", "bleu", "rougeL", "word_perplexity")


def read_task(task: PlannedTask, results: Mapping[str, Any]) -> tuple[dict[str, Measure], Scores]:
    """Return measures by name, and everything else in LM Eval's results of this task.

    A group without a score of its own, and a tag, give a measure for each of their tasks.
    """
    leaves = list(results["n-samples"])
    names = [task.name] if _metrics(_scores(results, task.name)) else leaves
    measures = {name: _measure(name, task, results) for name in names}
    details = {
        "leaderboard": task.board,
        "read": {name: ", ".join(_score_keys(task, _scores(results, name))) for name in names},
        "shots": {leaf: results["n-shot"][leaf] for leaf in leaves},
        "chat_template": task.templated,
        "n": {leaf: results["n-samples"][leaf] for leaf in leaves},
        "versions": {leaf: results["versions"].get(leaf) for leaf in leaves},
        "metrics": {**results["results"], **results.get("groups", {})},
    }
    score = _board_score(task, results)
    return measures, details | ({} if score is None else {"normalised": score})


def wrong_shots(task: PlannedTask, results: Mapping[str, Any]) -> set[int]:
    """Return the shots of a leaderboard's task that differ from the leaderboard's."""
    shots = {int(count) for leaf, count in results["n-shot"].items() if leaf in results["n-samples"]}
    return shots - {task.row.shots} if task.row and task.board else set()


def _measure(name: str, task: PlannedTask, results: Mapping[str, Any]) -> Measure:
    scores = _scores(results, name)
    keys = _score_keys(task, scores)
    leaves = [name] if name in results["n-samples"] else list(results["n-samples"])
    if task.row and task.row.by_subject and len(leaves) > 1:
        value, error = _mean([_value(results["results"][leaf], keys) for leaf in leaves])
        how = f"plain mean of its {len(leaves)} tasks"
    else:
        value, error = _value(scores, keys)
        how = f"of its {len(leaves)} tasks together" if len(leaves) > 1 else "share or mean of its questions"
    shots = sorted({results["n-shot"][leaf] for leaf in leaves})
    metric = keys[0].split(",")[0]
    return Measure(
        value=value,
        title=name,
        unit=" and ".join(key.removesuffix(",none") for key in keys),
        meaning=f"{'mean of ' if len(keys) > 1 else ''}{' and '.join(keys)} as LM Eval computes it, {how},"
        f" {' or '.join(map(str, shots))}-shot, {'with' if task.templated else 'without'} chat template",
        low=None if error is None else value - Z95 * error,
        high=None if error is None else value + Z95 * error,
        n=sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
        better=_better(results, leaves[0], metric),
        main=True,
    )


def _board_score(task: PlannedTask, results: Mapping[str, Any]) -> float | None:
    """Compute the score on the scale of leaderboard version 2, 0 to 100; None for other tasks."""
    row = task.row
    if row is None or row not in BOARDS[V2]:
        return None
    scaled = []
    for name in [task.name] if isinstance(row.chance, float) else results["n-samples"]:
        if isinstance(row.chance, float):
            chance = row.chance
        elif row.chance is None:
            chance = 1 / len(results["configs"][name]["doc_to_choice"])
        else:
            chance = row.chance[name]
        scores = _scores(results, name)
        scaled.append(above_chance(_value(scores, _score_keys(task, scores))[0], chance))
    return sum(scaled) / len(scaled)


def _scores(results: Mapping[str, Any], name: str) -> Scores:
    """Return LM Eval's scores of a group or a task; empty where it reports none."""
    scores: Scores = results.get("groups", {}).get(name) or results["results"].get(name, {})
    return scores


def _metrics(scores: Scores) -> list[str]:
    """List the keys of the form ``metric,filter`` with a number."""
    return [
        key
        for key, value in scores.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _score_keys(task: PlannedTask, scores: Scores) -> tuple[str, ...]:
    """Choose the metrics of a task that are its score: the leaderboard's for its tasks."""
    keys = _metrics(scores)
    if task.row:
        wanted = [metric if "," in metric else f"{metric},none" for metric in task.row.metrics]
        if all(key in keys for key in wanted):
            return tuple(wanted)
    for metric in _PREFERRED:
        if matching := [key for key in keys if key.split(",")[0] == metric]:
            return (matching[0],)
    return tuple(keys[:1])


def _value(scores: Scores, keys: Sequence[str]) -> tuple[float, float | None]:
    """Average the metrics, with the standard error where it is a single metric that has one."""
    value = sum(float(scores[key]) for key in keys) / len(keys) if keys else math.nan
    metric, _, filter_name = keys[0].partition(",") if keys else ("", "", "")
    error = scores.get(f"{metric}_stderr,{filter_name}")
    known = len(keys) == 1 and isinstance(error, int | float) and math.isfinite(error)
    return value, float(error) if known and error is not None else None


def _mean(values: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    """Average independent scores, with the standard error."""
    errors = [error for _, error in values if error is not None]
    mean = sum(value for value, _ in values) / len(values)
    return mean, math.sqrt(sum(e * e for e in errors)) / len(values) if len(errors) == len(values) else None


def _better(results: Mapping[str, Any], leaf: str, metric: str) -> Any:
    higher = results.get("higher_is_better", {}).get(leaf, {}).get(metric)
    return None if higher is None else "higher" if higher else "lower"
