"""Details of evaluations in another shape than figures draw: named, left out, and no reason to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caldpo.report.comparison import compare_runs
from caldpo.report.evaluation_results import drawable
from tests.helpers.messages import names
from tests.report.results import content, measure, reliability
from tests.report.runs import finals, held_out, write_run

BIN = reliability((0.5, 0.55, 0.6, 10))["reliability"][0]
QUANTILES = {"levels": [0.05, 0.5], "chosen": [-1.0, 0.5], "rejected": [-2.0, -1.0]}
LENGTHS = {"low": 1, "high": 5, "count": 3, "chosen_fell": 0.5, "both_fell": 0.25}
POINT = {"step": 0, "kl": 0.0, "reward": 1.0}
GOOD: dict[str, dict[str, Any]] = {
    "preference": {"reliability": [BIN], "prompts": 3},
    "displacement": {"log_ratios": QUANTILES, "by_length": [LENGTHS]},
    "oracle": {"points": [POINT, {"step": 10, "reward": 1.0}, {"step": 20, "kl": None, "reward": 2}]},
    "of_a_later_version": {"reliability": "anything"},
}


def test_what_suites_write_is_drawn_as_it_is() -> None:
    notes: list[str] = []
    results = {suite: content({}, details=details, notes=["a note"]) for suite, details in GOOD.items()}
    results["judge"] = {"measures": {}}
    assert drawable(results, notes) == results
    assert notes == []


BAD = [
    ("preference", "reliability", {"low": 0.5}),
    ("preference", "reliability", "text"),
    ("preference", "reliability", 3),
    ("preference", "reliability", [BIN, 3]),
    ("preference", "reliability", [BIN | {"claimed": None}]),
    ("preference", "reliability", [BIN | {"count": 0}]),
    ("preference", "reliability", [BIN | {"low": "0.5"}]),
    ("preference", "reliability", [{k: v for k, v in BIN.items() if k != "high"}]),
    ("displacement", "log_ratios", [1, 2]),
    ("displacement", "log_ratios", QUANTILES | {"chosen": [1.0]}),
    ("displacement", "log_ratios", QUANTILES | {"rejected": [None, 1.0]}),
    ("displacement", "log_ratios", {"levels": [0.5], "chosen": [1.0]}),
    ("displacement", "by_length", [LENGTHS | {"both_fell": None}]),
    ("displacement", "by_length", {"low": 3}),
    ("oracle", "points", [3]),
    ("oracle", "points", [POINT | {"kl": "0"}]),
    ("oracle", "points", True),
]


@pytest.mark.parametrize(("suite", "key", "value"), BAD)
def test_another_shape_is_left_out_and_named(suite: str, key: str, value: Any) -> None:
    notes: list[str] = []
    details = GOOD[suite] | {key: value}
    results = drawable({suite: content({"x": measure(1.0)}, details=details)}, notes)
    assert results[suite]["details"] == {k: v for k, v in GOOD[suite].items() if k != key}
    assert results[suite]["measures"] == {"x": measure(1.0)}
    (note,) = notes
    names(note, f"evaluation/{suite}.json:", f"details.{key}")


@pytest.mark.parametrize(("key", "value", "left"), [("details", [1], {}), ("details", "x", {}), ("notes", 3, [])])
def test_a_part_that_is_something_else(key: str, value: Any, left: Any) -> None:
    notes: list[str] = []
    results = drawable({"preference": content({}) | {key: value}}, notes)
    assert results["preference"][key] == left
    assert len(notes) == 1


def test_a_run_with_harmed_files_is_missing_from_figures_that_are_drawn_all_the_same(tmp_path: Path) -> None:
    """All figures of a sweep one of whose runs has files that are beyond recognition inside."""
    measures = {
        "preference": {"calibration_error": measure(0.1)},
        "displacement": {},
        "oracle": {"kl": measure(1.0), "reward": measure(2.0)},
    }
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
    for seed in (0, 1):
        results = {suite: content(measures[suite], details=GOOD[suite]) for suite in measures}
        if seed:
            for suite in measures:
                results[suite]["details"] = {key: [[{"low": []}]] for key in GOOD[suite]}
        write_run(tmp_path / str(seed), seed=seed, rows=rows, metrics=finals(rows[-1]), evaluation=results)
    compare_runs(str(tmp_path), dpi=40)
    report = (tmp_path / "report.md").read_text()
    for suite in measures:
        assert any(line.startswith("- `1`:") and f"evaluation/{suite}.json" in line for line in report.splitlines())
    for picture in ("calibration.png", "displacement.png", "reward_kl.png"):
        assert (tmp_path / picture).is_file()
