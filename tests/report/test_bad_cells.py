"""Files of runs that hold what no run writes: a bad cell costs that cell, a bad run that run, never the report."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from caldpo.report import read_runs as collect
from caldpo.report.comparison import compare_runs
from caldpo.report.dynamics_plot import reward_dynamics
from caldpo.report.grouping import group_runs
from caldpo.report.plot_style import save
from caldpo.report.read_curves import read_curves
from caldpo.report.read_runs import read_run, read_runs
from caldpo.report.run_files import in_one_unit
from tests.fuzz.effort import fuzz
from tests.fuzz.values import anything, numbers
from tests.helpers.messages import names
from tests.report.results import content, measure
from tests.report.runs import finals, held_out, table, write_run

ROWS = [held_out(0, 0.0, 0.0), held_out(10, -1.0, -3.0)]
HUGE = int("1" * 400)
GOOD = "a good one"


def whole(folder: Path, loss: str = "dpo", **keys: Any) -> Path:
    return write_run(folder, loss, rows=ROWS, metrics=finals(ROWS[-1], oracle__kl=1.0, oracle__reward=0.5), **keys)


def with_summary(folder: Path, **entries: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("cell", ["x", "True", "[1]", "2024-01-01", "1,5", "0x10", "--1", "\ufffd"])
def test_a_cell_that_is_no_number_costs_that_cell(cell: str, tmp_path: Path) -> None:
    path, notes = tmp_path / "metrics.csv", []
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["step", "loss", "val/loss"], [0, 0.5, cell], [1, cell, 0.25], [2, 0.125, ""]])
    assert read_curves(path, notes) == {"loss": {0: 0.5, 2: 0.125}, "val/loss": {1: 0.25}}
    assert [re.findall(r"line (\d)", note) for note in notes] == [["2"], ["3"]]
    assert all(repr(cell) in note for note in notes)


@pytest.mark.parametrize("step", ["", "x", "-1", "1.5", "nan", "inf", "1e300", "1" * 500])
def test_a_line_without_a_step_costs_that_line(step: str, tmp_path: Path) -> None:
    path, notes = tmp_path / "metrics.csv", []
    path.write_text(f"step,loss\n0,0.5\n{step},0.25\n2.0,0.125\n")
    assert read_curves(path, notes) == {"loss": {0: 0.5, 2: 0.125}}
    assert [note.split()[0] for note in notes] == ["metrics.csv:3"]


def test_what_a_float_can_hold_is_a_number(tmp_path: Path) -> None:
    path, notes = tmp_path / "metrics.csv", []
    path.write_bytes("\ufeffstep,a,a,\xe9\n0,1e400,-inf,nan\n".encode())
    curves = read_curves(path, notes)
    assert curves["a"] == {0: -math.inf}
    assert math.isnan(curves["\xe9"][0])
    assert ["'a'" in note for note in notes] == [True]


def test_bad_entries_of_the_summary_are_named(tmp_path: Path) -> None:
    folder = whole(tmp_path / "x")
    metrics = {"val/loss": "x", "a": HUGE, "b": -HUGE, "c": [1], "d": True, "val/log_ratios/chosen": -1.0}
    with_summary(
        folder, metrics=metrics, steps={"a": 1}, wall_seconds="NaN", peak_memory_bytes=[1], planned_steps=1e400
    )
    run = read_run(folder, tmp_path)
    assert (run.final["a"], run.final["b"]) == (math.inf, -math.inf)
    assert not {"c", "d", "val/loss"} & run.final.keys()
    notes = " ".join(run.notes)
    for name in ("steps", "wall_seconds", "peak_memory_bytes", "val/loss 'x'", "c '[1]'", "d 'True'"):
        assert name in notes


def test_files_that_contradict_each_other_are_told_with_both_values(tmp_path: Path) -> None:
    folder = whole(tmp_path / "x", seed=3)
    assert read_run(folder, tmp_path).notes == ()
    metrics = finals(ROWS[-1]) | {"val/log_ratios/chosen": -0.25}
    with_summary(folder, metrics=metrics, steps=12, seed=4, loss_name="ipo")
    run = read_run(folder, tmp_path)
    assert (run.loss, run.seed, run.final["val/log_ratios/chosen"]) == ("ipo", 4, -0.25), "the summary counts"
    loss, seed, steps, values = run.notes
    for note, both in ((loss, ("ipo", "dpo")), (seed, ("4", "3")), (steps, ("12", "10")), (values, ("-0.25", "-1"))):
        assert all(value in note for value in both)


def test_rounding_and_null_contradict_nothing(tmp_path: Path) -> None:
    rows = [ROWS[0], held_out(10, -1.0, math.nan)]
    folder = write_run(tmp_path / "x", rows=rows, metrics=finals(rows[-1]) | {"val/log_ratios/chosen": -1.0 - 1e-13})
    path = folder / "summary.json"
    path.write_text(path.read_text().replace("NaN", "null"))
    assert read_run(folder, tmp_path).notes == ()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep of one good run and others, each with something that no run writes; compared."""
    place = tmp_path_factory.mktemp("bad") / "a <b>|`c`"
    whole(place / GOOD)
    nasty = "x\n```\nrm -rf ~ # `$(id)`"
    whole(
        place / "=cmd",
        "ipo",
        overrides=[f"data.train={nasty}", "--config-dir=/evil"],
        config={"data": {"train": nasty}},
    )
    whole(
        place / "dollar", "cpo", config={"data": {"train": "/d/a$x_$b.jsonl"}}, overrides=["data.train=/d/a$x_$b.jsonl"]
    )
    whole(
        place / "dollar2",
        "cpo",
        config={"data": {"train": "/d/a$y$_{.jsonl"}},
        overrides=["data.train=/d/a$y$_{.jsonl"],
    )
    with_summary(
        whole(place / "types", "sft"), metrics={"val/loss": "x", "a": HUGE}, steps={"a": 1}, data="x", alarms=3
    )
    (whole(place / "list") / "summary.json").write_text("[1]")
    (whole(place / "binary", "rso") / "metrics.csv").write_bytes(
        b"step,val/log_ratios/chosen\n0,\xff\xfe\n1,\0\n2,-1\n"
    )
    (whole(place / "empty", "slic") / "metrics.csv").write_text("")
    (whole(place / "config", "cal_dpo") / "config.yaml").write_text("2024-01-01: [1, .nan]\nloss: {beta: yes}\n")
    results = {"preference": content({"x": measure(HUGE, -HUGE, 0.5, title="<i>|`", meaning="[a](b)")}, notes=["# no"])}
    whole(place / "evaluated", "cal_ipo", evaluation=results)
    extreme = [held_out(0, -1e308, 1e308), held_out(10, 1e308, -1e308)]
    write_run(
        place / ("n" * 200), "cal_slic", rows=extreme, metrics=finals(extreme[-1], oracle__kl=1e308, oracle__reward=1)
    )
    error = "Error\n\n# <h1>\n| a | b |\n```"
    write_run(place / "fai\nled", "f_dpo", rows=ROWS, status="failed", error=error)
    undecodable = os.fsdecode(os.fsencode(place) + b"/\xff\xfe")
    whole(Path(undecodable), "dpo", seed=1)
    (place / "multirun.yaml").write_text(
        yaml.safe_dump({"hydra": {"overrides": {"task": [f"a={nasty}", "-cd=/evil"]}}})
    )
    compare_runs(str(place), dpi=30)
    return place, (place / "report.md").read_text()


def test_the_good_run_is_there_with_its_figures(report: tuple[Path, str]) -> None:
    place, text = report
    final = table(text, "Final figures on held-out pairs")
    assert final["dpo"]["chosen log-ratio (nats)"] == "-1.00 ± 0"
    assert "reward_dynamics.png" in text
    assert (place / "reward_dynamics.png").is_file()


def test_nothing_of_a_name_acts_in_the_report(report: tuple[Path, str]) -> None:
    outside = re.sub(r"^(```+)sh\n.*?\n\1$", "", report[1], flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"`[^`\n]*`", "", outside.replace("\\`", ""))
    assert not re.search(r"(?<!\\)<\w", outside)
    assert not re.search(r"^# (?!Comparison)|^```|^rm ", outside, flags=re.MULTILINE)
    assert "[a](b)" not in outside


def test_each_line_to_copy_is_a_command(report: tuple[Path, str]) -> None:
    blocks = re.findall(r"^(```+)sh\n(.*?)\n\1$", report[1], flags=re.DOTALL | re.MULTILINE)
    lines = [line for _, block in blocks for line in block.splitlines()]
    assert len(lines) == 14
    assert all(line.startswith("python -m caldpo.train ") for line in lines)
    assert "/evil" not in "".join(lines)


def test_no_cell_of_the_csv_is_a_formula(report: tuple[Path, str]) -> None:
    with (report[0] / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13
    for row in rows:
        for cell in filter(None, row.values()):
            if cell[0] in "=+-@":
                float(cell)
    assert next(row for row in rows if row["run"] == "'=cmd")["val/log_ratios/chosen"] == "-1.0"


def test_a_run_that_cannot_be_read_costs_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for loss in ("dpo", "ipo"):
        whole(tmp_path / loss, loss)

    def read(folder: Path, root: Path, *more: Any) -> Any:
        if folder.name == "ipo":
            raise RuntimeError("nobody foresaw\nthis")
        return read_run(folder, root, *more)

    monkeypatch.setattr(collect, "read_run", read)
    compare_runs(str(tmp_path), dpi=30)
    text = (tmp_path / "report.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("- `ipo`"))
    names(line, "unreadable")
    assert "nobody foresaw this" in table(text, "Runs that did not finish")["ipo"]["error"]


def test_a_figure_that_cannot_be_drawn_costs_that_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole(tmp_path / "x")

    def broken(*_: Any) -> Any:
        raise ValueError("no such colour")

    monkeypatch.setattr("caldpo.report.frontier_plot.reward_kl", broken)
    compare_runs(str(tmp_path), dpi=30)
    text = (tmp_path / "report.md").read_text()
    (line,) = (line for line in text.splitlines() if "reward_kl.png" in line)
    names(line, "ValueError: no such colour")
    assert "(reward_kl.png)" not in text
    assert (tmp_path / "reward_dynamics.png").is_file()


@fuzz(40, cost=10, value=anything, metrics=numbers)
def test_any_summary_gives_a_run(value: Any, metrics: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = whole(tmp_path_factory.mktemp("fuzz") / "x")
    try:
        with_summary(folder, **dict.fromkeys(("data", "versions", "policy", "formula", "implicit_reward_beta"), value))
        with_summary(folder, metrics={"val/log_ratios/chosen": metrics, "a": value})
    except (ValueError, RecursionError):  # no JSON
        return
    (run,) = read_runs([folder], folder.parent)
    assert run.status in ("finished", "incomplete")
    assert all(isinstance(value, float) for value in run.final.values())


@pytest.mark.parametrize("value", [1e308, -1e308, 1e150, 5e-324, math.inf, math.nan])
def test_any_number_can_be_drawn(value: float, tmp_path: Path) -> None:
    for place, end in enumerate((value, 1.0, -2.0)):
        write_run(tmp_path / str(place), "abc"[place], rows=[ROWS[0], held_out(5, 1.0, end), held_out(10, end, 0.5)])
    settings = group_runs(read_runs(sorted(tmp_path.iterdir()), tmp_path))
    save(reward_dynamics(settings, "", "sd"), tmp_path / "x.png", 30)


def test_rewards_are_converted_to_one_unit(tmp_path: Path) -> None:
    for beta in (0.5, 0.02):
        rows = [
            {"step": 0, "rewards/margins": 7 * beta, "rewards/accuracies": 0.75},
            held_out(10, -1.0, -3.0, beta=beta),
        ]
        write_run(tmp_path / str(beta), rows=rows, metrics=finals(*rows), loss_keys={"beta": beta}, reward_beta=beta)
    runs = read_runs(sorted(tmp_path.iterdir()), tmp_path)
    for run in runs:
        assert run.reward_beta == 0.1
        assert run.final["val/rewards/margins"] == pytest.approx(0.2)
        assert run.curves["val/rewards/chosen"][10] == pytest.approx(-0.1)
        assert run.curves["rewards/margins"][0] == pytest.approx(0.7)
        assert run.curves["rewards/accuracies"][0] == 0.75
        assert run.final["val/log_ratios/chosen"] == -1.0
        names(run.notes[-1], 0.1)
    assert in_one_unit(runs) == runs


def test_rewards_of_an_unknown_unit_are_left_out_beside_known_ones(tmp_path: Path) -> None:
    for name in ("known", "unknown"):
        whole(tmp_path / name, reward_beta=0.1 if name == "known" else math.nan)
    known, unknown = read_runs(sorted(tmp_path.iterdir()), tmp_path)
    assert known.final["val/rewards/margins"] == pytest.approx(0.2)
    assert "val/rewards/margins" not in unknown.final
    assert unknown.final["val/rewards/accuracies"] == 0.9
    assert len(unknown.notes) == 1
    assert "reward" in unknown.notes[-1]
    (alone,) = read_runs([tmp_path / "unknown"], tmp_path)
    assert "val/rewards/margins" in alone.final
