"""An estimate on the terminal and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.estimation.memory_capacity import GIB

if TYPE_CHECKING:
    from caldpo.estimation.estimate_run import Estimate


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Two tables, the verdict and what to change."""
    title = "Estimate: no weights were loaded, nothing was trained"
    facts = Table(title=title, title_justify="left", show_header=False)
    for name, value in _facts(estimate):
        facts.add_row(name, value)
    console.print(facts)
    needs, has = estimate.needs, estimate.capacity
    table = Table(title="Memory of each device, at its peak", title_justify="left", show_footer=True)
    table.add_column("part", footer="total")
    table.add_column("GiB", justify="right", footer=f"~{needs.total / GIB:,.3f}")
    table.add_column("share", justify="right")
    for name, size in needs.parts.items():
        if size:
            table.add_row(name, f"{size / GIB:,.3f}", f"{size / needs.total:.0%}")
    console.print(table)
    if needs.host:
        console.print(Text(f"and of each process in main memory: {needs.host / GIB:,.2f} GiB"))
    if needs.unknown:
        console.print(Text(f"activations are not known: {needs.unknown}"))
    there = "not known" if has.bytes is None else f"{has.bytes / GIB:,.2f} GiB"
    console.print(Text(f"device has: {there} ({has.what})"))
    print_verdict(estimate, console)
    for way in estimate.verdict.advice:
        console.print(Text(f"  {way}"))


def print_verdict(estimate: Estimate, console: Console, name: str = "") -> None:
    """The verdict on one line."""
    style = {True: "bold green", False: "bold red", None: "bold yellow"}[estimate.verdict.fits]
    console.print(Text.assemble(f"{name}: " if name else "", (estimate.verdict.text, style)), soft_wrap=True)


def as_dict(estimate: Estimate) -> dict[str, Any]:
    """Plain values, as ``estimate.json`` holds them; bytes and tokens."""
    s, needs, has = estimate.schedule, estimate.needs, estimate.capacity
    return {
        "estimate": True,
        "policy": estimate.policy,
        "parameters": needs.parameters,
        "trainable": needs.trainable,
        "weights_dtype": needs.dtype,
        "reference": needs.reference,
        "layout": estimate.layout,
        "pairs": s.pairs,
        "test_pairs": estimate.sample.test_pairs,
        "sampled_pairs": estimate.sample.report.train.pairs,
        "exact": {"tokens": s.exact, "steps": s.exact_steps},
        "steps": s.steps,
        "steps_per_epoch": s.steps_per_epoch,
        "epochs": s.epochs,
        "micro_batches_per_epoch": s.micro_batches,
        "tokens_per_epoch": {
            "prompt": s.prompt_tokens,
            "response": s.response_tokens,
            "computed": s.computed_tokens,
        },
        "tokens_per_step": s.computed_tokens / s.steps_per_epoch,
        "largest_micro_batch": {"pairs": len(s.largest), "tokens": s.largest_tokens},
        "truncated": estimate.sample.truncated(),
        "memory_bytes": {**needs.parts, "total": needs.total},
        "activations_unknown": needs.unknown or None,
        "device_bytes": has.bytes,
        "device": has.what,
        "fits": estimate.verdict.fits,
        "verdict": estimate.verdict.text,
        "advice": list(estimate.verdict.advice),
        "host_bytes": needs.host,
        "flops": None if estimate.flops is None else asdict(estimate.flops) | {"total": estimate.flops.total},
        "flops_unknown": needs.uncounted or None,
        "assumed": None if estimate.hours is None else asdict(estimate.hours),
    }


def _cost(estimate: Estimate) -> list[tuple[str, str]]:
    """Operations, and hours where they are to be said."""
    flops, hours = estimate.flops, estimate.hours
    if flops is None:
        return [("FLOPs", f"not known: {estimate.needs.uncounted}")]
    parts = ", ".join(
        f"{name} {value / flops.total:.0%}" for name, value in asdict(flops).items() if value >= 0.005 * flops.total
    )
    lines = [("FLOPs", f"~{flops.total:.3g} ({parts})")]
    if hours is not None:
        told = f"~{hours.device:,.3g} GPU-hours" + (
            f", {hours.wall:,.3g} h by the clock" if hours.wall < hours.device else ""
        )
        assumed = f"ASSUMING {hours.utilisation:.0%} of {hours.tflops:g} TFLOP/s; not measured"
        lines.append(("time", f"{told}, {assumed}"))
    return lines


def _facts(estimate: Estimate) -> list[tuple[str, str]]:
    s, needs, sample = estimate.schedule, estimate.needs, estimate.sample
    about = "" if s.exact else "~"
    steps = f"{s.steps:,}" if s.exact_steps else f"~{s.steps:,}"
    per_step = s.computed_tokens / s.steps_per_epoch
    cut = ", ".join(f"{about}{count:,} {what}" for what, count in sample.truncated().items() if count) or "nothing"
    frozen = "" if needs.trainable == needs.parameters else f", {needs.trainable:,} of them trained"
    drawn = (
        "all tokenised" if s.exact else f"{sample.report.train.pairs:,} of them tokenised; ~ is estimated from those"
    )
    return [
        ("policy", estimate.policy),
        ("parameters", f"{needs.parameters:,}{frozen} ({needs.dtype})"),
        ("reference", needs.reference),
        ("training pairs", f"{about}{s.pairs:,}, {drawn}"),
        ("steps", f"{steps} ({about}{s.steps_per_epoch:,} an epoch, {s.epochs:.2f} epochs)"),
        ("tokens an epoch", f"{about}{s.prompt_tokens:,} of prompts, {about}{s.response_tokens:,} of responses"),
        (
            "tokens computed",
            f"{about}{s.computed_tokens:,} an epoch, {about}{per_step:,.0f} a step (layout {estimate.layout})",
        ),
        ("largest micro-batch", f"{about}{s.largest_tokens:,} tokens, {len(s.largest)} pairs"),
        ("truncated", cut),
        *_cost(estimate),
    ]
