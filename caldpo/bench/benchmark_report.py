"""The table of a benchmark, and the facts needed to judge or repeat it: device, versions, data, options."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.bench.benchmark_data import padding_waste, training_order
from caldpo.bench.benchmark_rows import Row
from caldpo.bench.benchmark_settings import BenchmarkModel, BenchmarkSettings
from caldpo.bench.worker_job import Answer
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.report.table_cells import NONE, markdown_table

# speed x: multiple of the baseline's; memory x: the baseline's memory over this one's; estimate: of the peak memory,
# and the measured peak over it
HEADERS = (
    "variant",
    "pairs/s (range)",
    "response tokens/s",
    "speed x",
    "peak MiB",
    "memory x",
    "of peak",
    "estimate MiB (measured)",
)


def cells(row: Row) -> list[str]:
    """Format a row, in the order of ``HEADERS``."""
    if row.pairs_per_second is None or row.peak_bytes is None:
        return [row.title, "out of memory", *[NONE] * (len(HEADERS) - 3), _estimate(row)]
    middle, lowest, highest = row.pairs_per_second
    return [
        row.title,
        f"{middle:.3g} ({lowest:.3g}-{highest:.3g})",
        _figure(row.response_tokens_per_second, ".0f"),
        _figure(row.speed, ".2f"),
        f"{row.peak_bytes / 2**20:.0f}",
        _figure(row.memory, ".2f"),
        _figure(row.peak_share, ".2f"),
        _estimate(row),
    ]


def agreement_lines(rows: Sequence[Row]) -> list[str]:
    """How far each variant is from the baseline."""
    return [
        f"{row.title}: loss {d.loss:.1e}, gradient norm {d.first_grad_norm:.1e} at the first step,"
        f" {d.grad_norm:.1e} at any" + (f"; NO AGREEMENT: {d.problem}" if d.problem else "")
        for row in rows
        if (d := row.difference) is not None
    ]


def reference_line(rows: Sequence[Row]) -> str:
    """State the time of precomputing the reference's log-probs, of the variants that do."""
    seconds = {row.title: s for row in rows if (s := row.reference_seconds_per_pair) is not None}
    each = "; ".join(f"{title} {1000 * value:.3g}" for title, value in seconds.items())
    return f"Reference precomputed before training, not part of the steps, ms per pair: {each or NONE}"


def print_table(console: Console, rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """Print table, agreement and facts."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    texts = [cells(row) for row in rows]
    for column, header in enumerate(HEADERS):
        # on a narrow terminal cells and headers wrap between words
        words = " ".join([header, *(row[column] for row in texts)]).split()
        table.add_column(Text(header), justify="right" if column else "left", min_width=max(map(len, words)))
    for row in texts:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print(Text(reference_line(rows)), soft_wrap=True)
    if lines := agreement_lines(rows):
        console.print("Largest relative differences from the baseline")
        for line in lines:
            console.print(Text(f"  {line}"), soft_wrap=True)
    for name, value in facts.items():
        console.print(Text(f"{name}: {value}"), soft_wrap=True)


def markdown(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """Write the same as a Markdown document."""
    lines = ["# Benchmark", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += ["", markdown_table(HEADERS, map(cells, rows)), "", reference_line(rows)]
    if differences := agreement_lines(rows):
        lines += ["", "Largest relative differences from the baseline:", "", *(f"- {line}" for line in differences)]
    return "\n".join(lines) + "\n"


def _estimate(row: Row) -> str:
    if row.estimated_bytes is None:
        return NONE
    measured = "" if row.of_estimate is None else f" ({row.of_estimate:.2f} of it)"
    return f"{row.estimated_bytes / 2**20:.0f}{measured}"


def _figure(value: float | None, form: str) -> str:
    return NONE if value is None else f"{value:{form}}"


def report_facts(
    settings: BenchmarkSettings,
    model: BenchmarkModel,
    device: str,
    pairs: TokenizedPairs,
    answers: Mapping[str, Sequence[Answer]],
    matmul_flops: float,
    rows: Sequence[Row],
    baseline: str | None,
) -> dict[str, str]:
    """Describe the benchmark in lines, by their titles."""
    measured = [answer for rounds in answers.values() for answer in rounds]
    versions = {name: number for answer in measured for name, number in answer.versions.items()}
    facts = {
        "device": f"{device_name(device)}, {settings.num_threads} CPU thread(s); measured matmul peak"
        f" {matmul_flops / 1e9:,.0f} GFLOP/s in {model.dtype}",
        "model": f"random weights: {model.describe()}",
        "data": data_line(settings, model, pairs),
        "steps": f"{settings.steps} timed after {settings.warmup_steps} of warm-up, {settings.micro_batch_size} pairs"
        f" each; medians of {settings.repeats} interleaved round(s), a process each",
        "memory": measured[0].memory["of"] if measured else "",
        "of peak": "minimal FLOPs (each token once, no padding, no recomputation, no reference) per second, over the"
        " matmul peak",
        "estimate": "memory by caldpo.estimate, from the same overrides before anything ran; in brackets the measured"
        " peak as a multiple of it",
        "optimiser": f"AdamW, lr {settings.lr:g} constant, no weight decay; DPO loss, beta {settings.beta:g}",
        "versions": ", ".join(f"{name} {v}" for name, v in sorted(versions.items())),
    }
    if "trl" in versions:
        padding_free = "its DPOTrainer warns that the option is switched off, and pads"
        facts["not measured"] = f"padding_free of TRL {versions['trl']}: {padding_free}"
    base = next((row for row in rows if row.name == baseline), None)
    if base:
        facts["speed x, memory x"] = f"times faster, and times less memory, than {base.title}"
    for row in rows:
        if answers[row.name]:
            facts[row.name] = "; ".join(filter(None, (answers[row.name][0].options, first_run(row, base))))
    return facts


def first_run(row: Row, base: Row | None) -> str:
    """State the speed of one epoch together with precomputing the reference's log-probs; empty where out of memory."""
    speed, base_speed = row.first_run_pairs_per_second, base and base.first_run_pairs_per_second
    if speed is None:
        return ""
    ratio = f", {speed / base_speed:.2f} times {base.title}'s" if base and base_speed else ""
    return f"first run, reference included: {speed:.3g} pairs/s{ratio}"


def data_line(settings: BenchmarkSettings, model: BenchmarkModel, pairs: TokenizedPairs) -> str:
    """Describe the pairs: source, lengths, and the cost of padding and of repeated prompts."""
    lengths = pairs.lengths()[training_order(len(pairs), settings)]
    prompts, responses = lengths[:, 0], lengths[:, 1:]
    padding, repetition = padding_waste(lengths, settings.micro_batch_size)
    source = "synthetic pairs, log-normal lengths"
    if settings.data_file is not None:
        source = f"{Path(settings.data_file).name}, ids beyond {model.vocab_size:,} tokens folded into them"
    return (
        f"{len(pairs)} pairs ({source}); prompts {prompts.mean():.0f} tokens, responses {responses.mean():.0f};"
        f" as padded rows {padding:.2f} times the tokens without padding, and those {repetition:.2f} times the tokens"
        " with each prompt once"
    )


def device_name(device: str) -> str:
    """Read the device's own name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
