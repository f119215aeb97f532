"""What a run leaves behind for people and for reports: summary.json and two tables on the terminal."""

from __future__ import annotations

import math
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from caldpo import __version__
from caldpo.metrics_file import read_rows

VERSIONED = ("torch", "pytorch-lightning", "transformers", "datasets", "hydra-core", "wandb")
SHOWN = ("log_ratios/chosen", "log_ratios/rejected", "rewards/margins", "rewards/accuracies", "displacement")


def print_start(facts: dict[str, str]) -> None:
    """What is about to be trained, before anything dear happens."""
    table = Table(title="Run", show_header=False, title_justify="left")
    for name, value in facts.items():
        table.add_row(name, value)
    Console().print(table)


def print_layout(layout: str, why: str) -> None:
    """Which layout the batches have."""
    Console().print(f"layout: {layout} ({why})", soft_wrap=True, highlight=False, markup=False)


def note_rounding(dtype: torch.dtype, lr: float) -> None:
    """Say so when most updates will round to nothing: bfloat16 has 8 bits, and small steps fall below the last."""
    if dtype in (torch.bfloat16, torch.float16) and lr < 1e-4:
        Console().print(
            f"[bold]note:[/bold] the policy's weights are {dtype}: with optim.lr={lr:g} most updates are smaller than"
            " half of a weight's last digit and are lost; model.dtype=float32 with trainer.precision=bf16-mixed keeps"
            " them, optim=adamw_stochastic keeps them on average"
        )


def print_end(summary: dict[str, Any], places: dict[str, str]) -> None:
    """Held-out metrics at start and end are in metrics.csv; here the final ones, and where everything lies."""
    table = Table(title=f"Held-out pairs after {summary['steps']} steps", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    metrics = summary["metrics"]
    names = [f"val/{n}" for n in SHOWN] + [n for n in metrics if n.startswith("oracle/")]
    for name in names:
        if name in metrics:
            table.add_row(name, f"{metrics[name]:.4g}")
    console = Console()
    console.print(table)
    console.print(
        f"{summary['wall_seconds']:.1f} s, peak memory {summary['peak_memory_bytes'] / 2**20:.0f} MiB"
        f" ({summary['peak_memory_of']})"
    )
    for name, value in places.items():
        console.print(f"{name}: {value}", soft_wrap=True, highlight=False)


def print_clipping(metrics: Path, limit: float | None) -> None:
    """Say so when most steps were clipped: the limit then decides about the length of every update.

    Args:
        metrics: ``metrics.csv`` of the run.
        limit: ``trainer.gradient_clip_val``.
    """
    norms = [float(row["grad_norm"]) for row in read_rows(metrics) if row.get("grad_norm")]
    norms = [norm for norm in norms if math.isfinite(norm)]
    clipped = sum(norm > limit for norm in norms) if limit is not None else 0
    if 2 * clipped > len(norms):
        share = "every step was" if clipped == len(norms) else f"{clipped:,} of {len(norms):,} steps were"
        Console().print(
            f"{share} clipped: gradient norms of {min(norms):.3g} to {max(norms):.3g},"
            f" trainer.gradient_clip_val={limit:g} (null does not clip)",
            soft_wrap=True,
            highlight=False,
        )


def print_line(name: str, summary: dict[str, Any]) -> None:
    """One finished run in one line, for sweeps; and the command that uploads it, if it was tracked offline."""
    metrics = summary["metrics"]
    ratios = (f"{metrics[f'val/log_ratios/{side}']:+.2f} {side}" for side in ("chosen", "rejected"))
    print(f"{name}: log-ratios {', '.join(ratios)} after {summary['steps']} steps, {summary['wall_seconds']:.1f} s")
    for alarm in summary["alarms"]:
        fallen = ", ".join(f"{value:+.2f}" for value in alarm["log_ratios/chosen"])
        print(f"  alarm at step {alarm['step']}: {alarm['alarm']}, the chosen log-ratio fell: {fallen} nats")
    if summary["skipped_steps"]:
        print(f"  {summary['skipped_steps']} optimiser steps were skipped: nonfinite_batches/ has the non-finite ones")
    if summary["upload"]:
        print(f"  upload to W&B: {summary['upload']}")


def versions() -> dict[str, str]:
    """Versions of what determines a run's numbers."""
    libraries = {name: version(name) for name in VERSIONED}
    return {"caldpo": __version__, "python": platform.python_version(), **libraries}


def peak_memory() -> tuple[int, str]:
    """Peak bytes, and of what: the GPU's allocations where there is one, else the whole process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), "GPU allocations of this run"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "whole process so far"
