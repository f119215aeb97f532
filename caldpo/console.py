"""What a training run prints: what is trained, how, and the final figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from transformers import PreTrainedModel

from caldpo import metric_definitions as m
from caldpo.config.conf_dir import conf_dir
from caldpo.data.batching import ByTokens, StepPlan
from caldpo.data.data_report import list_counts
from caldpo.data.pair_stream import ENDLESS
from caldpo.data.rejected_rows import REJECTED_ROWS
from caldpo.metrics_file import NAME, iter_rows
from caldpo.models.adapted_policy import count_parameters
from caldpo.utils.notes import print_notes
from caldpo.utils.stream_console import Console
from caldpo.utils.text_format import counted

END_METRICS = (m.CHOSEN_LOG_RATIO, m.REJECTED_LOG_RATIO, m.REWARD_MARGIN, m.ACCURACY, m.DISPLACEMENT)
_MOST_OF_ALL_WEIGHTS = 1e-6  # learning rates up to this are those of preference training of all weights
_OWN_ROWS = ("lr", "schedule", "_target_")  # keys of an optimiser that have rows of their own


def print_facts(title: str, facts: Mapping[str, str]) -> None:
    """Print facts by name as a table; where there is no terminal as lines, of which none is folded."""
    console = Console()
    if not console.is_terminal:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:<{width}}  {value}", flush=True)
        return
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def note_rounding(dtype: torch.dtype, lr: float) -> None:
    """Warn where most updates will round to nothing: bfloat16 has 8 bits, and small updates fall below the last."""
    if dtype in (torch.bfloat16, torch.float16) and lr < 1e-4:
        print_notes(
            [
                f"the policy's weights are {dtype}: with optim.lr={lr:g} most updates are smaller than half of a"
                " weight's last digit and are lost; model.dtype=float32 with trainer.precision=bf16-mixed keeps them,"
                " optim=adamw_stochastic keeps them on average"
            ]
        )


def print_end(summary: Mapping[str, Any], run_dir: Path, *, exported: bool, adapted: bool) -> None:
    """Print the final held-out metrics, time and memory, and where the files are."""
    table = Table(title=f"Held-out pairs after {summary['steps']} steps", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    metrics = summary["metrics"]
    for name in [metric.held_out.name for metric in END_METRICS] + [n for n in metrics if n.startswith("oracle/")]:
        if name in metrics:
            table.add_row(name, f"{metrics[name]:.4g}")
    Console().print(table)
    memory = f"{summary['peak_memory_bytes'] / 2**20:.0f} MiB ({summary['peak_memory_of']})"
    print(f"{summary['wall_seconds']:.1f} s, peak memory {memory}")
    if rejected := summary["rejected_rows"]:
        rows = counted(sum(rejected.values()), "row")
        print(f"left out: {rows} ({list_counts(rejected)}), listed in {run_dir / REJECTED_ROWS}")
    print(f"metrics: {run_dir / NAME}")
    if summary["stopped_early"]:
        print(f"training {_early_stop(summary)}")
    if best := summary["best_checkpoint"]:
        print(f"best checkpoint: step {best['step']:,}, {best['metric']} {best['value']:.6g} (checkpoint=best)")
        print_notes([best["note"]] if best["note"] else [])
    if exported:
        print(f"policy: {run_dir / 'policy'}{' (the adapter; its base is loaded beside it)' if adapted else ''}")
    if summary["upload"]:
        print(f"upload to W&B: {summary['upload']}")
    for command in summary.get("tracker_views", ()):
        print(f"curves: {command}")


def print_clipping(metrics: Path, limit: float | None) -> None:
    """Print how many steps were clipped where most were: the limit then decides about the length of every update."""
    norms = [float(row["grad_norm"]) for row in iter_rows(metrics) if row.get("grad_norm")]
    norms = [norm for norm in norms if math.isfinite(norm)]
    clipped = sum(norm > limit for norm in norms) if limit is not None else 0
    if 2 * clipped > len(norms):
        share = "every step was" if clipped == len(norms) else f"{clipped:,} of {len(norms):,} steps were"
        print(
            f"{share} clipped: gradient norms of {min(norms):.3g} to {max(norms):.3g},"
            f" trainer.gradient_clip_val={limit:g} (null does not clip)"
        )


def print_line(name: str, summary: Mapping[str, Any]) -> None:
    """Print a finished run in one line, for sweeps; below it what was unusual, and where its curves are."""
    metrics = summary["metrics"]
    ratios = (f"{metrics[f'val/log_ratios/{side}']:+.2f} {side}" for side in ("chosen", "rejected"))
    print(f"{name}: log-ratios {', '.join(ratios)} after {summary['steps']} steps, {summary['wall_seconds']:.1f} s")
    if summary["stopped_early"]:
        print(f"  {_early_stop(summary)}")
    for alarm in summary["alarms"]:
        fallen = ", ".join(f"{value:+.2f}" for value in alarm.get("log_ratios/chosen", ()))
        text = f"the chosen log-ratio fell: {fallen} nats" if fallen else alarm["text"]  # of another callback
        print(f"  alarm at step {alarm['step']}: {alarm['alarm']}, {text}")
    if summary["skipped_steps"]:
        print(f"  {summary['skipped_steps']} optimiser steps were skipped: nonfinite_batches/ has the non-finite ones")
    if summary["upload"]:
        print(f"  upload to W&B: {summary['upload']}")
    for command in summary.get("tracker_views", ()):
        print(f"  curves: {command}")


def _early_stop(summary: Mapping[str, Any]) -> str:
    return f"was stopped early, after {summary['steps']:,} of {summary['planned_steps']:,} steps"


def recipe_note(model: str | None, path: Any, overrides: Sequence[str], data: str | None = None) -> str | None:
    """Warn where the settings of an option are made for another model or other data.

    ``model`` and ``data`` are the options that the command line chose, ``path`` is ``model.path``.
    """
    if model == "tiny" and data == "local":
        return (
            "note: the embedded model knows the words of its generated reviews and no others;"
            " for pairs of your own take model=hf model.path=ID_OR_FOLDER"
        )
    file = conf_dir() / "model" / f"{model}.yaml"
    if not file.is_file() or not any(text.lstrip("+").startswith("model.path=") for text in overrides):
        return None
    own = yaml.safe_load(file.read_text(encoding="utf-8")).get("model", {}).get("path")
    if own in (None, "???", path):
        return None
    return (
        f"note: optimiser, learning rate, lengths and steps of model={model} are a recipe for {own};"
        f" model=hf model.path={path} has neutral ones for a model of your own"
    )


def adapter_rate_note(model: str | None, adapter: str | None, lr: float, overrides: Sequence[str]) -> str | None:
    """Warn where an adapter is trained at the learning rate that a recipe has for all weights, and nobody typed it."""
    typed = any(text.lstrip("+").startswith("optim.lr=") for text in overrides)
    if adapter in (None, "none") or typed or lr > _MOST_OF_ALL_WEIGHTS:
        return None
    return (
        f"note: optim.lr={lr:g} of model={model} is a rate for training all weights; adapter={adapter} mostly takes"
        f" about ten times as much: optim.lr={10 * lr:.3g}"
    )


def training_facts(
    cfg: DictConfig, policy: PreTrainedModel, plan: StepPlan, *, optimizer: str, reference: str
) -> dict[str, str]:
    """Describe how the policy is trained, by name; ``optimizer`` is the option that ``optim=`` chose."""
    clip = cfg.trainer.gradient_clip_val
    trained, total = count_parameters(policy)
    return {
        "optimiser": _optimizer(cfg.optim, optimizer),
        "learning rate": _learning_rate(cfg.optim),
        "pairs per step": _pairs(plan),
        "steps": _steps(plan),
        "precision": f"{cfg.trainer.precision} on {cfg.trainer.accelerator}, weights in {_dtypes(policy)}",
        "trained": f"{trained:,} of {total:,} parameters ({100 * trained / max(total, 1):.3g} %)",
        "gradient clipping": "none" if clip is None else f"max norm {clip:g}",
        "reference": reference,
    }


def on_one_line(facts: Mapping[str, str]) -> str:
    """Shorten the facts of :func:`training_facts` to one line, for ``console=compact``."""
    steps = facts["steps"].partition(" ")[0]
    return ", ".join(
        [
            facts["optimiser"].partition(" (")[0],
            f"lr {facts['learning rate']}",
            f"{facts['pairs per step'].partition(' ')[0]} pairs a step",
            f"{steps} step{'' if steps == '1' else 's'}",
            facts["precision"].partition(",")[0],
            facts["trained"],
            f"reference {facts['reference']}",
        ]
    )


def _optimizer(section: DictConfig, option: str) -> str:
    settings: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]
    listed = ", ".join(f"{key} {_number(value)}" for key, value in settings.items() if key not in _OWN_ROWS)
    return f"{option} ({listed})" if listed else option


def _learning_rate(section: DictConfig) -> str:
    schedule = section.get("schedule")
    lr = _number(section.get("lr"))
    if schedule is None:
        return lr
    steps, ratio = schedule.get("warmup_steps"), schedule.get("warmup_ratio")
    warmup = f"{_number(ratio)} of the steps" if steps is None else f"{steps} steps"
    return f"{lr}, {schedule.decay} after a warm-up of {warmup}"


def _pairs(plan: StepPlan) -> str:
    if plan.step_size > plan.pairs:  # an epoch is one step
        return f"{plan.pairs} (all there are; the settings ask for {plan.step_size})"
    per_device = plan.step_size // plan.world_size
    devices = f" on each of {plan.world_size} devices" if plan.world_size > 1 else ""
    if isinstance(plan.micro_batching, ByTokens):
        tokens = plan.micro_batching.budget
        cut = f"{plan.accumulation} micro-batch{'es' if plan.accumulation > 1 else ''} of at most {tokens:,} tokens"
        return f"{plan.step_size} ({per_device}{devices}, in {cut})"
    accumulated = f" x {plan.accumulation} micro-batches" if plan.accumulation > 1 else ""
    return f"{plan.step_size} ({plan.micro_batch_size} per micro-batch{accumulated}{devices})"


def _steps(plan: StepPlan) -> str:
    if plan.pairs == ENDLESS:
        return f"{plan.steps:,} ({counted(plan.pairs_seen, 'training pair')} of a stream)"
    epochs = plan.steps / max(plan.steps_per_epoch, 1)
    length = f"{epochs:.3g} epoch{'' if epochs == 1 else 's'} of {plan.steps_per_epoch:,}"
    return f"{plan.steps:,} ({length}; {counted(plan.pairs, 'training pair')})"


def _dtypes(policy: PreTrainedModel) -> str:
    trained = {str(p.dtype).removeprefix("torch.") for p in policy.parameters() if p.requires_grad}
    frozen = {str(p.dtype).removeprefix("torch.") for p in policy.parameters() if not p.requires_grad} - trained
    return " and ".join(sorted(trained)) + (f" (frozen ones in {', '.join(sorted(frozen))})" if frozen else "")


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
