"""An estimate, its tables on the terminal, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.data.collate import Layout
from caldpo.estimation.memory_breakdown import MemoryBreakdown
from caldpo.estimation.memory_verdict import GIB, DeviceMemory, Verdict
from caldpo.estimation.run_flops import GpuHours, RunFlops
from caldpo.estimation.step_schedule import DataSample, StepSchedule


@dataclass(frozen=True)
class Estimate:
    """What a run would need.

    Args:
        policy: what would be trained.
        sample: of the data.
        schedule: steps and tokens.
        memory: by part.
        has: memory of a device.
        verdict: whether the run fits.
        layout: of the batches.
        flops: of the whole run; None where they are unknown.
        hours: that these take; None where none are asked for.
    """

    policy: str
    sample: DataSample
    schedule: StepSchedule
    memory: MemoryBreakdown
    has: DeviceMemory
    verdict: Verdict
    layout: Layout
    flops: RunFlops | None
    hours: GpuHours | None


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Print two tables, the verdict and the advice."""
    title = "Estimate: no weights were loaded, nothing was trained"
    facts = Table(title=title, title_justify="left", show_header=False)
    for name, value in _facts(estimate):
        facts.add_row(name, value)
    console.print(facts)
    memory, has = estimate.memory, estimate.has
    table = Table(title="Peak memory of each device", title_justify="left", show_footer=True)
    table.add_column("part", footer="total")
    table.add_column("GiB", justify="right", footer=f"~{memory.total / GIB:,.3f}")
    table.add_column("share", justify="right")
    for name, size in memory.parts.items():
        if size:
            table.add_row(name, f"{size / GIB:,.3f}", f"{size / memory.total:.0%}")
    console.print(table)
    if memory.host:
        console.print(Text(f"CPU memory of each process: {memory.host / GIB:,.2f} GiB"))
    if memory.activations_unknown:
        console.print(Text(f"activations are not known: {memory.activations_unknown}"))
    room = "not known" if has.bytes is None else f"{has.bytes / GIB:,.2f} GiB"
    console.print(Text(f"device has: {room} ({has.source})"))
    print_verdict(estimate, console)
    for change in estimate.verdict.advice:
        console.print(Text(f"  {change}"))


def print_verdict(estimate: Estimate, console: Console, name: str = "") -> None:
    """Print the verdict on one line, after the run's name."""
    style = {True: "bold green", False: "bold red", None: "bold yellow"}[estimate.verdict.fits]
    console.print(Text.assemble(f"{name}: " if name else "", (estimate.verdict.text, style)), soft_wrap=True)


def as_dict(estimate: Estimate) -> dict[str, Any]:
    """Convert an estimate to the plain values of ``estimate.json``; bytes and tokens."""
    schedule, memory, has = estimate.schedule, estimate.memory, estimate.has
    return {
        "estimate": True,
        "policy": estimate.policy,
        "parameters": memory.parameters,
        "trainable": memory.trainable,
        "weights_dtype": memory.dtype,
        "reference": memory.reference,
        "layout": estimate.layout,
        "pairs": schedule.pairs,
        "test_pairs": estimate.sample.test_pairs,
        "sampled_pairs": estimate.sample.report.train.pairs,
        "exact": {"tokens": schedule.exact, "steps": schedule.exact_steps},
        "steps": schedule.steps,
        "steps_per_epoch": schedule.steps_per_epoch,
        "epochs": schedule.epochs,
        "micro_batches_per_epoch": schedule.micro_batches,
        "tokens_per_epoch": {
            "prompt": schedule.prompt_tokens,
            "response": schedule.response_tokens,
            "computed": schedule.computed_tokens,
        },
        "tokens_per_step": schedule.computed_tokens / schedule.steps_per_epoch,
        "largest_micro_batch": {"pairs": len(schedule.largest), "tokens": schedule.largest_tokens},
        "truncated": estimate.sample.truncated(),
        "memory_bytes": {**memory.parts, "total": memory.total},
        "activations_unknown": memory.activations_unknown or None,
        "device_bytes": has.bytes,
        "device": has.source,
        "fits": estimate.verdict.fits,
        "verdict": estimate.verdict.text,
        "advice": list(estimate.verdict.advice),
        "host_bytes": memory.host,
        "flops": None if estimate.flops is None else asdict(estimate.flops) | {"total": estimate.flops.total},
        "flops_unknown": memory.flops_unknown or None,
        "assumed": None if estimate.hours is None else asdict(estimate.hours),
    }


def _facts(estimate: Estimate) -> list[tuple[str, str]]:
    schedule, memory, sample = estimate.schedule, estimate.memory, estimate.sample
    about = "" if schedule.exact else "~"
    steps = f"{schedule.steps:,}" if schedule.exact_steps else f"~{schedule.steps:,}"
    per_step = schedule.computed_tokens / schedule.steps_per_epoch
    truncated = [f"{about}{count:,} {name}" for name, count in sample.truncated().items() if count]
    trained = "" if memory.trainable == memory.parameters else f", {memory.trainable:,} of them trained"
    tokenised = f"{sample.report.train.pairs:,} of them tokenised; ~ is estimated from those"
    if schedule.exact:
        tokenised = "all tokenised"
    return [
        ("policy", estimate.policy),
        ("parameters", f"{memory.parameters:,}{trained} ({memory.dtype})"),
        ("reference", memory.reference),
        ("training pairs", f"{about}{schedule.pairs:,}, {tokenised}"),
        ("steps", f"{steps} ({about}{schedule.steps_per_epoch:,} per epoch, {schedule.epochs:.2f} epochs)"),
        (
            "tokens per epoch",
            f"{about}{schedule.prompt_tokens:,} of prompts, {about}{schedule.response_tokens:,} of responses",
        ),
        (
            "tokens computed",
            f"{about}{schedule.computed_tokens:,} per epoch, {about}{per_step:,.0f} per step"
            f" (layout {estimate.layout})",
        ),
        ("largest micro-batch", f"{about}{schedule.largest_tokens:,} tokens, {len(schedule.largest)} pairs"),
        ("truncated", ", ".join(truncated) or "nothing"),
        *_cost(estimate),
    ]


def _cost(estimate: Estimate) -> list[tuple[str, str]]:
    """List FLOPs, and hours where they are asked for."""
    flops, hours = estimate.flops, estimate.hours
    if flops is None:
        return [("FLOPs", f"not known: {estimate.memory.flops_unknown}")]
    parts = ", ".join(
        f"{name} {value / flops.total:.0%}" for name, value in asdict(flops).items() if value >= 0.005 * flops.total
    )
    lines = [("FLOPs", f"~{flops.total:.3g} ({parts})")]
    if hours is not None:
        wall = f", {hours.wall:,.3g} h of wall-clock time" if hours.wall < hours.device else ""
        assumed = f"ASSUMING {hours.utilisation:.0%} of {hours.tflops:g} TFLOP/s; not measured"
        lines.append(("time", f"~{hours.device:,.3g} GPU-hours{wall}, {assumed}"))
    return lines
