"""Runs of every kind of trainer have the recorded numbers, to the last bit on the machine of the recording."""

from __future__ import annotations

import copy
import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.golden.observe import (
    DIGEST,
    RECORDED,
    TOLERANCE,
    differences,
    inputs,
    machine,
    observe,
    observe_comparison,
    observe_run,
)
from tests.golden.scenarios import HELD_OUT, METRICS, METRICS_FILE, RUNS, STEP

pytest.importorskip("peft")
GOLDEN = json.loads(RECORDED.read_text())
ELSEWHERE = {
    f"{name}: {GOLDEN['machine'].get(name)} -> {value}"
    for name, value in machine().items()
    if GOLDEN["machine"].get(name) != value
}
SAME_MACHINE = not ELSEWHERE


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the data of the runs, which are those of the recording."""
    assert inputs(tmp_path) == GOLDEN["inputs"], "the data of tests.evaluation.runs.write_data changed: record anew"
    if ELSEWHERE:
        described = ", ".join(sorted(ELSEWHERE))
        warnings.warn(f"golden runs: compared to {TOLERANCE:g}, not bit by bit ({described})", stacklevel=1)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_recorded_numbers(name: str, place: Path) -> None:
    golden = RUNS[name]
    if not (SAME_MACHINE or golden.anywhere):
        pytest.skip(f"compared on the machine of the recording alone: {', '.join(sorted(ELSEWHERE))}")
    expected = GOLDEN["runs"][golden.same_as or name]
    assert differences(expected, observe(golden, place), exact=SAME_MACHINE) == []


@pytest.mark.slow
def test_evaluation_and_comparison_have_the_recorded_numbers(place: Path) -> None:
    observed = observe_comparison(place)
    if not SAME_MACHINE:  # a report rounds, and a number on the edge is rounded the other way
        observed["report"] = GOLDEN["comparison"]["report"]
    assert differences(GOLDEN["comparison"], observed, exact=SAME_MACHINE) == []


def test_every_run_is_recorded_and_no_other() -> None:
    assert set(GOLDEN["runs"]) == {name for name, golden in RUNS.items() if golden.same_as is None}
    assert {golden.same_as for golden in RUNS.values()} - {None} <= set(GOLDEN["runs"])


def changed(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The recorded numbers of one run, one of them another."""
    run = copy.deepcopy(GOLDEN["runs"]["padded"])
    inner = run
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return run


@pytest.mark.parametrize("exact", [True, False])
def test_what_counts_as_a_difference(exact: bool) -> None:
    """A last bit, on one machine; more than the tolerance, on others; what is gone, everywhere."""
    run = GOLDEN["runs"]["padded"]
    row = ("metrics", "gradient norm", 1)
    norm = run["metrics"]["gradient norm"][1]

    def found(other: dict[str, Any]) -> list[str]:
        return differences(run, other, exact=exact)

    assert found(copy.deepcopy(run)) == []
    last_bit = f"metrics: gradient norm: row 1: recorded {norm!r}, found {math.nextafter(norm, 9)!r}"
    assert found(changed(row, math.nextafter(norm, 9))) == ([last_bit] if exact else [])
    assert len(found(changed(row, norm + 3 * TOLERANCE))) == 1
    assert len(found(changed(row, math.nan))) == len(found(changed(row, None))) == 1
    assert len(found(changed(("metrics", "step"), [0.0]))) == 1
    assert len(found(changed(("samples", "generated", 0), "w1"))) == 1
    assert len(found(changed(("metrics", "held-out other"), [0.0]))) == 1
    assert found(changed(("metrics", "held-out loss", 0), -0.0)) != []
    assert len(found(changed(("weights", DIGEST), "0"))) == exact
    renamed = copy.deepcopy(run)
    renamed["metrics"]["another name"] = renamed["metrics"].pop("gradient norm")
    assert len(found(renamed)) == 2


def rewritten(folder: Path, *, new: tuple[str, ...] = (), renamed: dict[str, str] | None = None) -> dict[str, Any]:
    """The recorded metrics of one run, written into its file with columns that are new or renamed, and read again."""
    columns = {"step": STEP, **METRICS}
    columns |= {f"held-out {meaning}": HELD_OUT.format(name) for meaning, name in METRICS.items()}
    recorded = GOLDEN["runs"]["padded"]["metrics"]
    table = {columns[meaning]: values for meaning, values in recorded.items()}
    table = {(renamed or {}).get(name, name): values for name, values in table.items()}
    table |= {name: [0.5] * len(recorded["step"]) for name in new}
    with (folder / METRICS_FILE).open("w", newline="") as file:
        csv.writer(file).writerows([table.keys(), *zip(*table.values(), strict=True)])
    return observe_run(folder)["metrics"]


def test_a_metric_that_was_defined_since_hides_nothing(tmp_path: Path) -> None:
    """It is not compared; what was recorded is, under its own name, and a column that nobody defines is an error."""
    recorded = GOLDEN["runs"]["padded"]["metrics"]
    assert rewritten(tmp_path) == recorded
    assert rewritten(tmp_path, new=("skipped_steps", "val/skipped_steps")) == recorded
    for name, meaning in (("grad_norm", "gradient norm"), ("val/loss", "held-out loss")):
        found = rewritten(tmp_path, renamed={name: "skipped_steps"})
        assert differences(recorded, found, exact=True) == [f"{meaning}: only recorded"]
    for name in ("gradient_norm", "terms/new", "val/diagnostics/new"):
        with pytest.raises(AssertionError, match=name):
            rewritten(tmp_path, new=(name,))
