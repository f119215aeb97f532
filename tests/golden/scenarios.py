"""Golden runs: what is run, under which keys, and which numbers of it are recorded in ``recorded.json``.

A recorded number is found by its meaning, not by its column or key: a rename is one edit in the tables below and
changes nothing in ``recorded.json``, so that the diff of a rename cannot hide a changed number. ``python -m
tests.golden`` records anew; only a change that is meant to alter numbers does that, and says so.

On the machine of the recording every number is compared bit by bit. Other processors and other versions of PyTorch
round otherwise: there numbers are compared to ``TOLERANCE``, the weights by their norms, and a warning says so.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
import re
import signal
import struct
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.evaluation.runs import write_data
from tests.report.runs import table
from tests.resume.child import Kill
from tests.resume.runs import train

RECORDED = Path(__file__).with_name("recorded.json")
DIGEST = "SHA-256"
TOLERANCE = 1e-5  # of a number x, in units of 1 + |x|, on another machine than the recording's

# ---- keys of the commands: here and nowhere else in this folder ----

OUTPUT, SWEEP_OUTPUT, RESUME = "hydra.run.dir={}", "hydra.sweep.dir={}", "resume={}"
COMMON = ("trainer.num_threads=1", "trainer.progress_bar=false", "logger=csv", "console=compact")
PAIRS = (
    *COMMON,
    "model=random",
    "model.tokenizer=tokenizer",
    "model.hidden_size=16",
    "model.architecture=llama",
    "data=local",
    "data.train=train.jsonl",
    "data.test=test.jsonl",
    "data.micro_batch_size=4",
    "data.eval_micro_batch_size=16",
    "data.preview_pairs=0",
    "trainer.accumulate_grad_batches=2",
    "trainer.max_steps=5",
    "trainer.val_check_interval=2",
    "callbacks.samples.prompts=2",
    "callbacks.samples.max_new_tokens=4",
    "callbacks.checkpoint.every=2",
    "optim.lr=0.01",
)
PADDED, PACKED = "layout=padded", "layout=packed"
RESIDENT, CACHED = "reference=frozen", "reference=precomputed"
TWO_RANKS = ("trainer.devices=2", "data.micro_batch_size=2")
TABLE = (
    *COMMON,
    "experiment=tabular",
    "trainer.max_steps=5",
    "trainer.val_check_interval=2",
    "callbacks.oracle.prompts=8",
    "loss=cal_dpo",
)


@dataclass(frozen=True)
class Golden:
    """A run whose numbers are recorded.

    Attributes:
        keys: its overrides.
        ranks: its processes (gloo).
        killed_at: the optimiser step at whose update SIGTERM stops it; it is resumed then.
        again: run a second time, with the caches that the first left; the second is recorded.
        same_as: the run whose recorded numbers this one has to have; None: its own are recorded.
        anywhere: compared on other machines too.
    """

    keys: tuple[str, ...]
    ranks: int = 1
    killed_at: int | None = None
    again: bool = False
    same_as: str | None = None
    anywhere: bool = True


def _pairs(*keys: str) -> tuple[str, ...]:
    return (*PAIRS, *keys)


DPO = _pairs("loss=dpo", PADDED, RESIDENT)
LORA = ("adapter=lora", "adapter.dropout=0.3", "reference=adapter")
FSDP = _pairs("loss=cal_dpo", PACKED, RESIDENT, *TWO_RANKS, "trainer.strategy=fsdp")
RUNS = {
    "padded": Golden(DPO),
    "packed": Golden(_pairs("loss=dpo", PACKED, RESIDENT)),
    "packed, logits recomputed": Golden(_pairs("loss=dpo", PACKED, RESIDENT, "logits_cache_mib=0"), same_as="packed"),
    "padded, token budget": Golden(_pairs("loss=dpo", PADDED, RESIDENT, "data.max_tokens_per_micro_batch=64")),
    "padded, float64": Golden(_pairs("loss=dpo", PADDED, RESIDENT, "trainer.precision=64-true")),
    # kernels of other processors round bfloat16 so differently that nothing tight could be compared
    "packed, bfloat16": Golden(
        _pairs("loss=dpo", PACKED, RESIDENT, "model.dtype=bfloat16", "trainer.precision=bf16-true"), anywhere=False
    ),
    "packed, mixed bfloat16": Golden(
        _pairs("loss=cal_dpo", PACKED, RESIDENT, "trainer.precision=bf16-mixed"), anywhere=False
    ),
    "cached, computed": Golden(_pairs("loss=cal_dpo", PACKED, CACHED)),
    "cached, read": Golden(_pairs("loss=cal_dpo", PACKED, CACHED), again=True, same_as="cached, computed"),
    "cal_dpo": Golden(_pairs("loss=cal_dpo", PADDED, RESIDENT)),
    "cal_dpo, scores": Golden(_pairs("loss=cal_dpo", "loss.targets=scores", PACKED, RESIDENT, "optim=rmsprop",
                                     "optim.lr=0.01", "optim.schedule.warmup_steps=2")),
    "cal_ipo": Golden(_pairs("loss=cal_ipo", PACKED, RESIDENT)),
    "cal_slic": Golden(_pairs("loss=cal_slic", PADDED, RESIDENT)),
    "cpo": Golden(_pairs("loss=cpo", PACKED)),
    "f_dpo": Golden(_pairs("loss=f_dpo", PADDED, RESIDENT)),
    "ipo, recomputed activations": Golden(
        _pairs("loss=ipo", PACKED, RESIDENT, "model.gradient_checkpointing=true", "model.tie_word_embeddings=true")
    ),
    "rso": Golden(_pairs("loss=rso", PACKED, RESIDENT)),
    "sft": Golden(_pairs("loss=sft", PACKED)),
    "slic, gpt2": Golden(_pairs("loss=slic", PADDED, "model.architecture=gpt2")),
    "lora": Golden(_pairs("loss=dpo", PACKED, *LORA)),
    "ddp": Golden(_pairs("loss=dpo", PADDED, RESIDENT, *TWO_RANKS, "trainer.strategy=ddp"), ranks=2),
    "fsdp": Golden(FSDP, ranks=2),
    "fsdp, lora": Golden(_pairs("loss=dpo", PACKED, *LORA, *TWO_RANKS, "trainer.strategy=fsdp"), ranks=2),
    "padded, resumed": Golden(DPO, killed_at=4, same_as="padded"),
    "lora, resumed": Golden(_pairs("loss=dpo", PACKED, *LORA), killed_at=3, same_as="lora"),
    "fsdp, resumed": Golden(FSDP, ranks=2, killed_at=4, same_as="fsdp"),
    "table": Golden(TABLE),
}  # fmt: skip

# the comparison of two losses over two seeds, evaluated
COMPARED = (*PAIRS, PACKED, RESIDENT, "callbacks.samples.prompts=0")
SWEEP = ("-m", "loss=dpo,cal_dpo", "seed=0,1", "hydra.sweep.subdir=${hydra.job.num}")
SUITES = ("preference", "displacement")
EVALUATE = (f"suite=[{','.join(SUITES)}]", "preference.resamples=100", "displacement.resamples=100", "report=false")

# ---- meaning -> name in the files: here and nowhere else in this folder ----

STEP = "step"
HELD_OUT = "val/{}"  # column of a metric on held-out pairs
CLOCK = ("tokens_per_second",)  # columns of metrics.csv that are not recorded
METRICS = {
    "loss": "loss",
    "contrast term": "terms/contrast",
    "calibration term": "terms/calibration",
    "negative log-likelihood term": "terms/nll",
    "chosen log-prob": "logps/chosen",
    "rejected log-prob": "logps/rejected",
    "chosen log-ratio": "log_ratios/chosen",
    "rejected log-ratio": "log_ratios/rejected",
    "chosen implicit reward": "rewards/chosen",
    "rejected implicit reward": "rewards/rejected",
    "reward margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "share with lower chosen log-prob": "displacement",
    "gradient norm": "grad_norm",
    "share of clipped steps": "clip_fraction",
    "learning rate": "lr",
}
# at the end of a run whose data knows the true reward; those of a table are exact
ORACLE = {
    "true reward": "oracle/reward",
    "true reward of the reference": "oracle/reference_reward",
    "win rate over the reference": "oracle/win_rate",
    "KL to the reference": "oracle/kl",
    "correlation of implicit and true reward": "oracle/pearson",
    "rank correlation of implicit and true reward": "oracle/spearman",
    "slope of implicit on true reward": "oracle/slope",
    "absolute error of the implicit reward": "oracle/error",
    "exact true reward": "oracle/exact_reward",
    "exact KL to the reference": "oracle/exact_kl",
    "exact KL from the optimum": "oracle/kl_from_optimum",
    "exact KL to the optimum": "oracle/kl_to_optimum",
    "exact objective": "oracle/objective",
    "exact objective of the optimum": "oracle/objective_optimum",
}
SAMPLES = {"step": "step", "prompt": "prompt", "generated": "sample"}  # samples.jsonl
# evaluation/SUITE.json["measures"], of each of which these figures
FIGURES = {"value": "value", "low": "low", "high": "high", "examples": "n"}
MEASURES = {
    "preference": {
        "accuracy": "accuracy",
        "reward margin": "margin",
        "chosen log-ratio": "log_ratio_chosen",
        "rejected log-ratio": "log_ratio_rejected",
        "calibration error": "calibration_error",
        "calibration error by chance": "calibration_error_by_chance",
        "accuracy where the chosen response is longer": "accuracy_longer",
        "accuracy where the chosen response is shorter": "accuracy_shorter",
        "accuracy of preferring the longer response": "accuracy_of_length",
        "rank correlation of margin and length difference": "length_correlation",
        "calibration error at the loss's own beta": "calibration_error_own_beta",
        "slope of implicit on true reward": "slope",
        "Pearson correlation of implicit and true reward": "pearson",
        "Spearman correlation of implicit and true reward": "spearman",
        "absolute error of the implicit reward": "error",
        "accuracy of the ranking by true reward": "accuracy_of_truth",
        "slope at the loss's own beta": "slope_own_beta",
    },
    "displacement": {
        "share of chosen that fell": "chosen_fell",
        "share of pairs of which both fell": "both_fell",
        "share of rejected that fell": "rejected_fell",
        "chosen log-ratio per token": "chosen_per_token",
        "rejected log-ratio per token": "rejected_per_token",
        "drift per token": "drift",
        "size of drift per token": "drift_size",
    },
}
# comparison.csv: a final metric on held-out pairs, one of the last training batch alone, a suite's measure
COMPARISON_RUN = "run"
COMPARISON = {"held-out": HELD_OUT, "training": "train/{}", "measure": "evaluation/{}/{}"}
# report.md: the table of this section, a row for each setting
REPORT_SECTION = "Final figures on held-out pairs"
REPORT = {
    "setting": "setting",
    "seeds": "seeds",
    "chosen log-ratio": "chosen log-ratio (nats)",
    "rejected log-ratio": "rejected log-ratio (nats)",
    "log-ratio margin": "log-ratio margin (nats)",
    "reward margin": "reward margin (0.1 x nats)",
    "accuracy": "accuracy (share of pairs)",
    "share with lower chosen log-prob": "displacement (share of pairs)",
}

Values = dict[str, Any]  # by meaning: a number, None where there is none, text, or a list of such (a column)


def machine() -> dict[str, str]:
    """What the last bits depend on: processor, the instructions that PyTorch uses, and the libraries that compute."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts: dict[str, str] = {}
    for line in reversed(lines):  # of the first processor
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    described = [facts[name] for name in ("model name", "cpu family", "model") if name in facts]
    return {
        "processor": " ".join(described) or platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "numpy", "scipy")},
    }


def inputs(folder: Path) -> dict[str, str]:
    """Fill the folder with data for the runs; digests of the pairs."""
    write_data(folder)
    return {file.name: _digest(file.read_bytes()) for file in sorted(folder.glob("*.jsonl"))}


def observe(golden: Golden, folder: Path) -> Values:
    """Do a run in a folder with :func:`inputs`, and return its numbers by meaning."""
    keys = (*golden.keys, OUTPUT.format("run"))
    if golden.again:
        _succeed(folder, *golden.keys, OUTPUT.format("before"))
    if golden.killed_at is not None:
        stopped = train(folder, *keys, kill=Kill("update", golden.killed_at, signal.SIGTERM), ranks=golden.ranks)
        assert stopped.codes[0] == 128 + signal.SIGTERM, stopped.said
        keys = (RESUME.format("run"),)
    _succeed(folder, *keys, ranks=golden.ranks)
    return _of_run(folder / "run")


def observe_comparison(folder: Path) -> dict[str, Values]:
    """Train two losses with two seeds in a folder with :func:`inputs`, evaluate and compare them."""
    _succeed(folder, *SWEEP, *COMPARED, SWEEP_OUTPUT.format("sweep"))
    _succeed(folder, "sweep", *EVALUATE, command="caldpo.evaluate")
    _succeed(folder, "sweep", command="caldpo.compare")
    first = folder / "sweep" / "0"
    observed = {f"evaluation {suite}": _of_evaluation(first, suite) for suite in MEASURES}
    return observed | {"comparison": _of_comparison(folder / "sweep"), "report": _of_report(folder / "sweep")}


def differences(expected: Any, found: Any, *, exact: bool, at: str = "") -> list[str]:
    """Where two observations differ: bit by bit, or by more than the tolerance."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if not exact:  # other bits have another digest
            expected, found = ({k: v for k, v in side.items() if k != DIGEST} for side in (expected, found))
        missing = [f"{at}{name}: only {where}" for where, names in
                   (("recorded", expected.keys() - found.keys()), ("found", found.keys() - expected.keys()))
                   for name in sorted(names)]  # fmt: skip
        both = [name for name in expected if name in found]
        return missing + [d for n in both for d in differences(expected[n], found[n], exact=exact, at=f"{at}{n}: ")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [d for i, (e, f) in pairs for d in differences(e, f, exact=exact, at=f"{at}row {i}: ")]
    return [] if _same(expected, found, exact) else [f"{at}recorded {expected!r}, found {found!r}"]


def record(recorded: dict[str, Any]) -> None:
    """Write ``recorded.json``: a line for each column, so that a change shows which."""

    def written(value: Any, depth: int) -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        inner = ",\n".join(f"{' ' * (depth + 1)}{json.dumps(k)}: {written(v, depth + 1)}" for k, v in value.items())
        return f"{{\n{inner}\n{' ' * depth}}}"

    RECORDED.write_text(written(recorded, 0) + "\n")


def _of_run(run: Path) -> Values:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"step": STEP, **METRICS, **ORACLE}
    columns |= {f"held-out {meaning}": HELD_OUT.format(name) for meaning, name in METRICS.items()}
    observed = {"metrics": _columns(rows, columns, ignored=CLOCK)}
    if (samples := run / "samples.jsonl").exists():
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        observed["samples"] = {meaning: [line[name] for line in lines] for meaning, name in SAMPLES.items()}
    if weights := [*(run / "policy").glob("*.safetensors")]:
        observed["weights"] = _of_weights(*weights)
    return observed


def _of_weights(file: Path) -> Values:
    """Their digest and, for other machines, the norm of each."""
    tensors = sorted(load_file(file).items())
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    norms = {name: value.double().norm().item() for name, value in tensors}
    return {DIGEST: _spaced(digest.hexdigest()), "norms": norms}


def _of_evaluation(run: Path, suite: str) -> Values:
    measures = json.loads((run / "evaluation" / f"{suite}.json").read_text())["measures"]
    return {
        meaning: _named({name: measure[name] for name in FIGURES.values()}, FIGURES)
        for meaning, measure in _named(measures, MEASURES[suite]).items()
    }


def _of_comparison(sweep: Path) -> Values:
    with (sweep / "comparison.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row[COMPARISON_RUN])
    columns = {"run": COMPARISON_RUN}
    for kind in ("held-out", "training"):
        columns |= {f"{kind} {meaning}": COMPARISON[kind].format(name) for meaning, name in METRICS.items()}
    for suite, measures in MEASURES.items():
        columns |= {f"{suite}: {m}": COMPARISON["measure"].format(suite, name) for m, name in measures.items()}
    unnamed = set(rows[0]) - set(columns.values())  # those of the settings, and short names of the same
    return _columns(rows, columns, ignored=unnamed)


def _of_report(sweep: Path) -> Values:
    rows = list(table((sweep / "report.md").read_text(), REPORT_SECTION).values())
    return {meaning: [row[name] for row in rows] for meaning, name in REPORT.items()}


def _columns(rows: list[dict[str, str]], columns: dict[str, str], ignored: Any) -> Values:
    """Columns of a table by meaning; one that has no meaning here is an error, lest its numbers go unseen."""
    by_name = {name: [_number(row[name]) for row in rows] for name in rows[0] if name not in ignored}
    return _named(by_name, columns)


def _named(values: dict[str, Any], names: dict[str, str]) -> Values:
    """Values by meaning, given the name that each meaning has in the files."""
    unknown = sorted(set(values) - set(names.values()))
    assert not unknown, f"no meaning in tests/golden/scenarios.py for {unknown}"
    return {meaning: values[name] for meaning, name in names.items() if name in values}


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _same(expected: Any, found: Any, exact: bool) -> bool:
    if not (isinstance(expected, int | float) and isinstance(found, int | float)):
        return bool(expected == found)
    if exact or not (math.isfinite(expected) and math.isfinite(found)):
        return struct.pack("d", expected) == struct.pack("d", found)  # -0.0 is not 0.0, and NaN is NaN
    return abs(found - expected) <= TOLERANCE * (1 + abs(expected))


def _digest(content: bytes) -> str:
    return _spaced(hashlib.sha256(content).hexdigest())


def _spaced(digest: str) -> str:
    """In words of eight digits: a run of 64 looks like a secret to the scanner."""
    return " ".join(re.findall(".{8}", digest))


def _succeed(folder: Path, *arguments: str, ranks: int = 1, command: str = "caldpo.train") -> None:
    ended = train(folder, *arguments, ranks=ranks, command=command)
    assert set(ended.codes) == {0}, ended.said
