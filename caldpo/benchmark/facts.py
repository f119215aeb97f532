"""What a reader has to know to judge or repeat a benchmark: device, versions, data, options."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from caldpo.benchmark.job import Answer
from caldpo.benchmark.pairs import training_order, waste
from caldpo.benchmark.settings import BenchmarkSettings
from caldpo.benchmark.shapes import Shape
from caldpo.data.tokens import TokenizedPairs


def describe(
    settings: BenchmarkSettings,
    shape: Shape,
    device: str,
    pairs: TokenizedPairs,
    answers: Mapping[str, Sequence[Answer]],
    matmul_flops: float,
    yardstick: str | None,
) -> dict[str, str]:
    """Lines for a person, by their titles."""
    of = next((rounds[0].memory["of"] for rounds in answers.values() if rounds), "")
    versions = {name: v for rounds in answers.values() for a in rounds for name, v in a.versions.items()}
    facts = {
        "device": f"{device_name(device)}, {settings.threads} CPU thread(s); measured matmul peak"
        f" {matmul_flops / 1e9:,.0f} GFLOP/s in {shape.dtype}",
        "model": f"random weights: {shape.describe()}",
        "data": data_line(settings, shape, pairs),
        "steps": f"{settings.steps} timed after {settings.warmup_steps} of warm-up, {settings.pairs_per_batch} pairs"
        f" each; medians of {settings.repeats} interleaved round(s), a process each",
        "memory": of,
        "of peak": "FLOPs that the mathematics needs (each token once, no padding, no recomputation, no"
        " reference) per second, over the matmul peak",
        "optimiser": f"AdamW, lr {settings.lr:g} constant, no weight decay; DPO loss, beta {settings.beta:g}",
        "versions": ", ".join(f"{name} {v}" for name, v in sorted(versions.items())),
    }
    if yardstick:
        facts["speed x, memory x"] = f"times faster, and times less memory, than {yardstick}"
    for name, rounds in answers.items():
        if rounds:
            facts[name] = rounds[0].options
    return facts


def data_line(settings: BenchmarkSettings, shape: Shape, pairs: TokenizedPairs) -> str:
    """Where the pairs are from, how long they are, and what padding and repeated prompts make of them."""
    lengths = pairs.lengths()[training_order(len(pairs), settings.pairs_per_batch, settings.seed)]
    prompts, responses = lengths[:, 0], lengths[:, 1:]
    padding, repetition = waste(lengths, settings.pairs_per_batch)
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
