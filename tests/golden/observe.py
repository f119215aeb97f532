"""Do the golden runs, find their numbers by meaning, compare them with ``recorded.json`` and record them anew.

On the machine of the recording every number is compared bit by bit. Other processors and other versions of PyTorch
round differently: there numbers are compared to ``TOLERANCE``, and weights by their norms.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from caldpo.metric_definitions import definition_of
from tests.evaluation.runs import write_data
from tests.golden.scenarios import (
    CLOCK,
    COMPARE,
    COMPARED,
    COMPARISON,
    COMPARISON_FILE,
    COMPARISON_RUN,
    EVALUATE,
    EVALUATION,
    EVALUATION_FILE,
    FIGURES,
    HELD_OUT,
    MEASURES,
    MEASURES_KEY,
    METRICS,
    METRICS_FILE,
    ORACLE,
    OUTPUT,
    REPORT,
    REPORT_FILE,
    REPORT_SECTION,
    RESUME,
    SAMPLES,
    SAMPLES_FILE,
    STEP,
    SWEEP,
    SWEEP_OUTPUT,
    TRAIN,
    WEIGHTS_FILES,
    Golden,
)
from tests.report.runs import table
from tests.resume.child import Kill
from tests.resume.runs import train

RECORDED = Path(__file__).with_name("recorded.json")
DIGEST = "SHA-256"
TOLERANCE = 1e-5  # of a number x, in units of 1 + |x|; other instructions of one processor differ by up to 4e-6

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
    """Fill the folder with the data of the runs, and return digests of the pairs."""
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
    return observe_run(folder / "run")


def observe_comparison(folder: Path) -> dict[str, Values]:
    """Train two losses with two seeds in a folder with :func:`inputs`, evaluate and compare them."""
    _succeed(folder, *SWEEP, *COMPARED, SWEEP_OUTPUT.format("sweep"))
    _succeed(folder, "sweep", *EVALUATION, command=EVALUATE)
    _succeed(folder, "sweep", command=COMPARE)
    first = folder / "sweep" / "0"
    observed = {f"evaluation {suite}": _of_evaluation(first, suite) for suite in MEASURES}
    return observed | {"comparison": _of_comparison(folder / "sweep"), "report": _of_report(folder / "sweep")}


def differences(expected: Any, found: Any, *, exact: bool, at: str = "") -> list[str]:
    """Where two observations differ: bit by bit, or by more than the tolerance."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if not exact:  # other bits have another digest
            expected, found = ({k: v for k, v in side.items() if k != DIGEST} for side in (expected, found))
        gone = [f"{at}{name}: only recorded" for name in expected if name not in found]
        new = [f"{at}{name}: only found" for name in found if name not in expected]
        both = [name for name in expected if name in found]
        inner = [d for n in both for d in differences(expected[n], found[n], exact=exact, at=f"{at}{n}: ")]
        return gone + new + inner
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


def observe_run(run: Path) -> Values:
    """Read the numbers of a finished run from its folder, by meaning."""
    with (run / METRICS_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"step": STEP, **METRICS, **ORACLE}
    columns |= {f"held-out {meaning}": HELD_OUT.format(name) for meaning, name in METRICS.items()}
    unrecorded = {name for name in rows[0] if name not in columns.values() and _is_defined(name)}
    observed = {"metrics": _columns(rows, columns, ignored={*CLOCK, *unrecorded})}
    if (samples := run / SAMPLES_FILE).exists():
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        observed["samples"] = {meaning: [line[name] for line in lines] for meaning, name in SAMPLES.items()}
    if weights := [*run.glob(WEIGHTS_FILES)]:
        observed["weights"] = _of_weights(*weights)
    return observed


def _is_defined(name: str) -> bool:
    """Whether the product defines a metric of this very name: one added since the recording, which has no such numbers.

    A renamed one cannot hide among these: its recorded meaning is missed. Terms of a loss are defined by no name of
    their own, so that a new one is still an error.
    """
    definition = definition_of(name)
    return definition is not None and definition.name == name.removeprefix(HELD_OUT.format(""))


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
    measures = json.loads((run / EVALUATION_FILE.format(suite)).read_text())[MEASURES_KEY]
    return {
        meaning: _named({name: measure[name] for name in FIGURES.values()}, FIGURES)
        for meaning, measure in _named(measures, MEASURES[suite]).items()
    }


def _of_comparison(sweep: Path) -> Values:
    with (sweep / COMPARISON_FILE).open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row[COMPARISON_RUN])
    columns = {"run": COMPARISON_RUN}
    for kind in ("held-out", "training"):
        columns |= {f"{kind} {meaning}": COMPARISON[kind].format(name) for meaning, name in METRICS.items()}
    for suite, measures in MEASURES.items():
        columns |= {f"{suite}: {m}": COMPARISON["measure"].format(suite, name) for m, name in measures.items()}
    unnamed = set(rows[0]) - set(columns.values())  # those of the settings, and short names of the same
    return _columns(rows, columns, ignored=unnamed)


def _of_report(sweep: Path) -> Values:
    rows = list(table((sweep / REPORT_FILE).read_text(), REPORT_SECTION).values())
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


def _succeed(folder: Path, *arguments: str, ranks: int = 1, command: str = TRAIN) -> None:
    ended = train(folder, *arguments, ranks=ranks, command=command)
    assert set(ended.codes) == {0}, ended.said
