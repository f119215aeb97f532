"""What a reader has to know to judge or repeat a benchmark: device, versions, data, options."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from caldpo.bench.benchmark_data import training_order, waste
from caldpo.bench.benchmark_model import Shape
from caldpo.bench.benchmark_rows import Row
from caldpo.bench.benchmark_settings import BenchmarkSettings
from caldpo.bench.worker_job import Answer
from caldpo.data.token_arrays import TokenizedPairs


def describe(
    settings: BenchmarkSettings,
    shape: Shape,
    device: str,
    pairs: TokenizedPairs,
    answers: Mapping[str, Sequence[Answer]],
    matmul_flops: float,
    rows: Sequence[Row],
    yardstick: str | None,
) -> dict[str, str]:
    """Lines for a person, by their titles.

    Args:
        settings, shape: what is measured.
        device: cpu or cuda.
        pairs: of a run.
        answers: of each variant, one for each round.
        matmul_flops: operations per second that the device reaches.
        rows: the figures of each variant.
        yardstick: name of the variant that ratios refer to; None: nothing to compare with.
    """
    of = next((rounds[0].memory["of"] for rounds in answers.values() if rounds), "")
    versions = {name: v for rounds in answers.values() for a in rounds for name, v in a.versions.items()}
    facts = {
        "device": f"{device_name(device)}, {settings.num_threads} CPU thread(s); measured matmul peak"
        f" {matmul_flops / 1e9:,.0f} GFLOP/s in {shape.dtype}",
        "model": f"random weights: {shape.describe()}",
        "data": data_line(settings, shape, pairs),
        "steps": f"{settings.steps} timed after {settings.warmup_steps} of warm-up, {settings.micro_batch_size} pairs"
        f" each; medians of {settings.repeats} interleaved round(s), a process each",
        "memory": of,
        "of peak": "FLOPs that the mathematics needs (each token once, no padding, no recomputation, no"
        " reference) per second, over the matmul peak",
        "estimate": "memory by caldpo.estimate, from the same overrides before anything ran; in brackets the measured"
        " peak as a multiple of it",
        "optimiser": f"AdamW, lr {settings.lr:g} constant, no weight decay; DPO loss, beta {settings.beta:g}",
        "versions": ", ".join(f"{name} {v}" for name, v in sorted(versions.items())),
    }
    if "trl" in versions:
        facts["not measured"] = (
            f"padding_free of TRL {versions['trl']}: its DPOTrainer warns that the option is switched off, and pads"
        )
    base = next((row for row in rows if row.name == yardstick), None)
    if base:
        facts["speed x, memory x"] = f"times faster, and times less memory, than {base.title}"
    for row in rows:
        if answers[row.name]:
            facts[row.name] = "; ".join(filter(None, (answers[row.name][0].options, first_run(row, base))))
    return facts


def first_run(row: Row, base: Row | None) -> str:
    """The speed of one epoch together with the pass that computes the reference's log-probs for it, if there is one."""
    speed, theirs = row.first_run_pairs_per_second, base and base.first_run_pairs_per_second
    if speed is None:
        return ""
    ratio = f", {speed / theirs:.2f} times {base.title}'s" if base and theirs else ""
    return f"first run, pass included: {speed:.3g} pairs/s{ratio}"


def data_line(settings: BenchmarkSettings, shape: Shape, pairs: TokenizedPairs) -> str:
    """Where the pairs are from, how long they are, and what padding and repeated prompts make of them."""
    lengths = pairs.lengths()[training_order(len(pairs), settings.micro_batch_size, settings.seed)]
    prompts, responses = lengths[:, 0], lengths[:, 1:]
    padding, repetition = waste(lengths, settings.micro_batch_size)
    if settings.data_file is None:
        source = "synthetic pairs, log-normal lengths"
    else:
        source = f"{Path(settings.data_file).name}, ids folded into {shape.vocab_size:,} tokens where they are beyond"
    return (
        f"{len(pairs)} pairs ({source}); prompts {prompts.mean():.0f} tokens, responses {responses.mean():.0f};"
        f" as padded rows {padding:.2f} times the tokens without padding, and those {repetition:.2f} times the tokens"
        " with each prompt once"
    )


def device_name(device: str) -> str:
    """The processor's own name for itself, where it tells."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
