"""The JSON of an estimate, and its tables on the terminal, which show the same values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.data.collate import Layout
from caldpo.estimation.memory_breakdown import MemoryBreakdown
from caldpo.estimation.memory_verdict import GIB, DeviceMemory, Verdict
from caldpo.estimation.step_schedule import DataSample, StepSchedule


def memory_values(memory: MemoryBreakdown, has: DeviceMemory, verdict: Verdict) -> dict[str, Any]:
    """Collect the memory by part and the verdict as plain values; bytes."""
    return {
        "parameters": memory.parameters,
        "trainable": memory.trainable,
        "weights_dtype": memory.dtype,
        "reference": memory.reference,
        "memory_bytes": {**memory.parts, "total": memory.total},
        "activations_unknown": memory.activations_unknown or None,
        "flops_unknown": memory.flops_unknown or None,
        "host_bytes": memory.host,
        "device_bytes": has.bytes,
        "device": has.source,
        "fits": verdict.fits,
        "verdict": verdict.text,
        "advice": list(verdict.advice),
    }


def data_values(
    sample: DataSample, schedule: StepSchedule, layout: Layout, *, streaming: bool = False
) -> dict[str, Any]:
    """Collect steps and tokens as plain values; of a stream, an epoch is its first pairs, the sample."""
    return {
        "layout": layout,
        "streaming": streaming,
        "pairs": schedule.pairs,
        "test_pairs": sample.test_pairs,
        "sampled_pairs": sample.report.train.pairs,
        "exact": {"tokens": schedule.exact and not streaming, "steps": schedule.exact_steps},
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
        "truncated": sample.truncated(),
    }


def print_estimate(values: Mapping[str, Any], console: Console) -> None:
    """Print two tables, the verdict and the advice."""
    title = "Estimate: no weights were loaded, nothing was trained"
    facts = Table(title=title, title_justify="left", show_header=False)
    for row in _facts(values):
        facts.add_row(*row)
    console.print(facts)
    parts = dict(values["memory_bytes"])
    total = parts.pop("total")
    table = Table(title="Peak memory of each device", title_justify="left", show_footer=True)
    table.add_column("part", footer="total")
    table.add_column("GiB", justify="right", footer=f"~{total / GIB:,.3f}")
    table.add_column("share", justify="right")
    for name, size in parts.items():
        if size:
            table.add_row(name, f"{size / GIB:,.3f}", f"{size / total:.0%}")
    console.print(table)
    if values["host_bytes"]:
        console.print(Text(f"CPU memory of each process: {values['host_bytes'] / GIB:,.2f} GiB"))
    if values["activations_unknown"]:
        console.print(Text(f"activations are not known: {values['activations_unknown']}"))
    room = "not known" if values["device_bytes"] is None else f"{values['device_bytes'] / GIB:,.2f} GiB"
    console.print(Text(f"device has: {room} ({values['device']})"))
    print_verdict(values, console)
    for change in values["advice"]:
        console.print(Text(f"  {change}"))


def print_verdict(values: Mapping[str, Any], console: Console, name: str = "") -> None:
    """Print the verdict on one line, after the run's name."""
    style = {True: "bold green", False: "bold red", None: "bold yellow"}[values["fits"]]
    console.print(Text.assemble(f"{name}: " if name else "", (values["verdict"], style)), soft_wrap=True)


def _facts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    exact, epoch, largest = values["exact"], values["tokens_per_epoch"], values["largest_micro_batch"]
    about, about_steps = ("" if exact[key] else "~" for key in ("tokens", "steps"))
    trainable = "" if values["trainable"] == values["parameters"] else f", {values['trainable']:,} of them trained"
    tokenised = f"{values['sampled_pairs']:,} of them tokenised; ~ is estimated from those"
    truncated = [f"{about}{count:,} {name}" for name, count in values["truncated"].items() if count]
    pairs = f"{about}{values['pairs']:,}, {'all tokenised' if exact['tokens'] else tokenised}"
    per_epoch = f"{about}{values['steps_per_epoch']:,} per epoch, {values['epochs']:.2f} epochs"
    span = "epoch"
    if values["streaming"]:
        pairs = (
            f"a stream of unknown length, its first {values['sampled_pairs']:,} tokenised; ~ is estimated from those"
        )
        per_epoch = f"~{values['steps'] / values['steps_per_epoch'] * values['pairs']:,.0f} pairs"
        epoch = {name: round(tokens * values["epochs"]) for name, tokens in epoch.items()}
        span = "run"
    per_step = f"{about}{values['tokens_per_step']:,.0f} per step (layout {values['layout']})"
    yield "policy", values["policy"]
    yield "parameters", f"{values['parameters']:,}{trainable} ({values['weights_dtype']})"
    yield "reference", values["reference"]
    yield "training pairs", pairs
    yield "steps", f"{about_steps}{values['steps']:,} ({per_epoch})"
    yield f"tokens per {span}", f"{about}{epoch['prompt']:,} of prompts, {about}{epoch['response']:,} of responses"
    yield "tokens computed", f"{about}{epoch['computed']:,} per {span}, {per_step}"
    yield "micro-batches", _micro_batches(values["micro_batches"])
    yield "largest micro-batch", f"{about}{largest['tokens']:,} tokens, {largest['pairs']} pairs"
    yield "truncated", ", ".join(truncated) or "nothing"
    if values["flops"] is None:
        yield "FLOPs", f"not known: {values['flops_unknown']}"
        return
    flops, hours = dict(values["flops"]), values["assumed"]
    total = flops.pop("total")
    parts = ", ".join(f"{name} {value / total:.0%}" for name, value in flops.items() if value >= 0.005 * total)
    yield "FLOPs", f"~{total:.3g} ({parts})"
    if hours is not None:
        wall = f", {hours['wall']:,.3g} h of wall-clock time" if hours["wall"] < hours["device"] else ""
        assumed = f"ASSUMING {hours['utilisation']:.0%} of {hours['tflops']:g} TFLOP/s; not measured"
        yield "time", f"~{hours['device']:,.3g} GPU-hours{wall}, {assumed}"


def _micro_batches(cut: Mapping[str, Any]) -> str:
    if cut["most_tokens"] is None:
        return "cut by count (data.micro_batch_size)"
    why = "data.max_tokens_per_micro_batch" if cut["reason"] is None else cut["reason"]
    text = f"within {cut['most_tokens']:,} tokens ({why})"
    if cut["recomputed_share"]:
        text += f"; longer pairs, {cut['recomputed_share']:.0%} of the tokens, recompute their activations"
    return text
