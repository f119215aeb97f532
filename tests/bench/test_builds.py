"""Commands of two builds, timed in turn: rows, inputs, the table, and rows that fail."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caldpo.bench import build_rows, process_tree
from caldpo.bench.build_inputs import copy_runs, lengthen_run, repeated_rows, synthetic_rows
from caldpo.bench.build_report import build_lines
from caldpo.bench.build_rows import (
    CPU,
    FIRST_RUN,
    MEMORY,
    OF_ESTIMATE,
    ROWS,
    SPEED,
    WALL,
    BuildRow,
    Target,
    arguments,
    renamed,
    selected,
    trl_figures,
)
from caldpo.benchmark import main
from caldpo.errors import CaldpoError
from caldpo.report.read_runs import read_run
from tests.bench.stopped_command import stopped
from tests.helpers.messages import names
from tests.report.runs import write_run

ROOT = Path(build_rows.__file__).parents[2]


def report(folder: str = "out") -> dict:
    return json.loads(Path(folder, "everything.json").read_text())


def test_a_build_against_itself() -> None:
    main([f"baseline={ROOT}", "rows=[help,typo]", "repeats=1", "hydra.run.dir=out"])
    content = report()
    lines = {(line["row"], line["figure"]): line for line in content["lines"]}
    assert set(lines) == {(row, figure) for row in ("help", "typo") for figure in (CPU, WALL, MEMORY)}
    for (row, figure), line in lines.items():
        assert line["baseline"] > 0
        assert line["this"] > 0
        assert line["ratio"] == pytest.approx(line["this"] / line["baseline"])
        assert (line["reached"] is not None) == (figure in ROWS[row].targets)
    assert lines["help", CPU]["compared"] == lines["help", CPU]["ratio"]
    names(Path("out/everything.md").read_text(), "help", "typo", "≤ 0.167", str(ROOT))
    assert not Path("out/work").exists()
    assert content["errors"] == {}


def test_rounds_alternate_and_a_failing_row_costs_that_row(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os; open(os.environ['ORDER'], 'a').write(os.environ['PYTHONPATH'] + '\\n')"
    fails = "import os, sys; print('it broke here'); sys.exit('other' in os.environ['PYTHONPATH'])"
    rows = {
        "bad": BuildRow("fails with one", (("-c", fails),)),
        "good": BuildRow("two commands", (("-c", script), ("-c", "pass"))),
        "after": BuildRow("more than good", (("-c", "sum(range(3_000_000))"),), {CPU: Target(2.0)}, beyond="bad"),
    }
    monkeypatch.setattr(build_rows, "ROWS", rows)
    monkeypatch.setattr(build_rows, "UNASKED", tuple(rows))
    monkeypatch.setenv("ORDER", str(Path("order").absolute()))
    other = Path("other")
    (other / "caldpo").mkdir(parents=True)
    (other / "caldpo" / "__init__.py").touch()
    code, text = stopped(capsys, "baseline=other", "repeats=2", "hydra.run.dir=out")
    assert code == 1
    table, _, error = text.partition("error:")
    names(error, "rows=[bad]", "exit code 1", "it broke here", "baseline")
    assert "good" in table
    assert Path("order").read_text().split() == [str(path) for path in (other.absolute(), ROOT, ROOT, other.absolute())]
    content = report()
    assert list(content["errors"]) == ["bad"]
    assert len(content["rounds"]["good"]["this"]) == 2
    names(Path("out/everything.md").read_text(), "it broke here", "bad")
    assert {line["row"]: line["reached"] for line in content["lines"] if line["figure"] == CPU}["after"] is None


@pytest.mark.parametrize(
    ("overrides", "facts", "remedy"),
    [
        (["baseline=nowhere"], ("baseline=nowhere", "caldpo/__init__.py"), "wheel"),
        ([f"baseline={ROOT}", "rows=[helpp]"], ("rows=['helpp']", "help?", "first_step"), None),
        ([f"baseline={ROOT}", "baseline_keys=[shape]"], ("baseline_keys", "shape"), None),
        ([f"baseline={ROOT}", "read_pairs=0"], ("read_pairs=0", "> 0"), None),
    ],
)
def test_a_mistake_is_answered(overrides: list[str], facts: tuple[str, ...], remedy: str | None, capsys) -> None:
    code, text = stopped(capsys, *overrides)
    assert code == 2
    names(text, *facts, remedy=remedy)
    assert not Path("outputs").exists()


def test_every_row_is_explained(capsys) -> None:
    code, text = stopped(capsys, "--help")
    assert code == 0
    explained = {name.strip(",") for line in text.splitlines() if line.startswith("  ") for name in line.split()[:2]}
    assert set(ROWS) <= explained


def test_a_row_brings_those_that_it_refers_to() -> None:
    assert list(selected(["first_step"])) == ["imports", "first_step"]
    assert list(selected(["read"])) == ["read_few", "read"]
    assert list(selected(None)) == [name for name in ROWS if name != "tests"]


def test_ratios_and_targets_by_hand() -> None:
    rows = {
        "imports": BuildRow("", ()),
        "first_step": BuildRow("", (), {CPU: Target(1.15, "imports")}),
        "few": BuildRow("", ()),
        "read": BuildRow("", (), {WALL: Target(0.4), MEMORY: Target(0.5)}, beyond="few"),
        "trl": BuildRow(
            "", (), {SPEED: Target(7.5, "value", "at least"), OF_ESTIMATE: Target(0.15, "value", "within")}
        ),
    }
    figures = {
        "imports": {"baseline": [{CPU: 10}, {CPU: 10}, {CPU: 12}], "this": [{CPU: 10}, {CPU: 8}, {CPU: 12}]},
        "first_step": {"baseline": [{CPU: 20}] * 3, "this": [{CPU: 11}, {CPU: 9}, {CPU: 18}]},
        "few": {"baseline": [{WALL: 10, MEMORY: 600, CPU: 9}], "this": [{WALL: 5, MEMORY: 500, CPU: 4}]},
        "read": {"baseline": [{WALL: 70, MEMORY: 900, CPU: 8}], "this": [{WALL: 23, MEMORY: 680, CPU: 9}]},
        "trl": {"baseline": [{SPEED: 5.0}], "this": [{SPEED: 7.4, OF_ESTIMATE: 0.88}]},
    }
    lines = {(line.row, line.figure): line for line in build_lines(rows, figures)}
    first = lines["first_step", CPU]
    assert (first.baseline, first.this) == (20, 11)
    assert first.ratio == pytest.approx(0.55)  # the median of 0.55, 0.45 and 0.9
    assert first.compared == pytest.approx(1.125)  # of 1.1, 1.125 and 1.5
    assert first.reached is True
    wall, memory = lines["read", WALL], lines["read", MEMORY]
    assert (wall.baseline, wall.this, wall.ratio, wall.reached) == (60, 18, pytest.approx(0.3), True)
    assert (memory.baseline, memory.this, memory.ratio, memory.reached) == (300, 180, pytest.approx(0.6), False)
    assert (lines["read", CPU].baseline, lines["read", CPU].this, lines["read", CPU].ratio) == (None, 5, None), "noise"
    assert lines["trl", SPEED].reached is False
    assert lines["trl", OF_ESTIMATE].reached is True  # 1 / 0.88 is 1.136
    assert lines["trl", OF_ESTIMATE].ratio is None
    assert lines["imports", CPU].reached is None


def test_a_command_without_pairs_is_filled_in_beside_a_file_of_pairs() -> None:
    settings: Any = SimpleNamespace(data_file="pairs.jsonl", sweep=["loss={a}"], steps=3, warmup_steps=1, device="cpu")
    assert arguments(ROWS["help"].commands[0], {}, settings) == ["-m", "caldpo.train", "--help"]
    places = {"data_file": "/pairs.jsonl", "tokenizer": "/words"}
    assert arguments(("{sweep}", "{data}", "steps={steps}"), places, settings) == [
        "loss={a}",
        "data_file=/pairs.jsonl",
        "tokenizer=/words",
        "benchmark_model.max_length=1024",
        "benchmark_model.max_prompt_length=512",
        "steps=3",
    ]


def test_keys_have_the_baselines_names() -> None:
    command = ["-m", "caldpo.benchmark", "benchmark_model=body", "benchmark_model.max_length=8", "benchmark_models=1"]
    assert renamed(command, {"benchmark_model": "shape"})[2:] == [
        "shape=body",
        "shape.max_length=8",
        "benchmark_models=1",
    ]


def test_figures_of_a_report_against_trl(tmp_path: Path) -> None:
    def row(name: str, pairs: float, reference: float | None, **more: float | None) -> dict:
        return {"name": name, "pairs_per_second": [pairs] * 3, "reference_seconds_per_pair": reference, **more}

    rows = [
        row("trl", 0.5, None),
        row("trl_low_memory", 1.0, 0.5, speed=2.0),
        row("caldpo", 4.0, 0.25, speed=8.0, memory=3.0, peak_bytes=90, estimated_bytes=100),
    ]
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": rows}))
    figures = trl_figures(tmp_path)
    assert figures[SPEED] == 8.0
    assert figures[FIRST_RUN] == pytest.approx(2.0 / 0.5)  # seconds a pair: 2 against 0.25 + 0.25
    assert figures[OF_ESTIMATE] == pytest.approx(0.9)


class TestInputs:
    def test_rows_of_a_file_are_repeated_with_other_prompts(self, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
        rows = [
            {"prompt": "Why?", "chosen": turns, "rejected": "No."},
            {"prompt": "How?", "chosen": "a", "rejected": "b"},
        ]
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
        drawn = list(itertools.islice(repeated_rows(path), 5))
        assert drawn[:2] == rows
        assert [row["prompt"] for row in drawn] == ["Why?", "How?", "Why? (1)", "How? (1)", "Why? (2)"]
        assert drawn[2]["chosen"] == [{"role": "user", "content": "Why? (1)"}, turns[1]]

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.jsonl"
        path.write_text('{"prompt": "a"}\n{"chosen": "b"}\n')
        with pytest.raises(CaldpoError) as refusal:
            next(repeated_rows(path))
        names(str(refusal.value), "pairs.jsonl:2", "prompt", remedy="read_few")

    def test_synthetic_pairs_are_drawn_by_the_seed(self) -> None:
        first, same, other = (list(itertools.islice(synthetic_rows(seed), 3)) for seed in (0, 0, 1))
        assert first == same
        assert first != other
        assert len({row["prompt"] for row in first}) == 3

    def test_copies_of_a_run_differ_in_seed_and_beta(self, tmp_path: Path) -> None:
        rows = [{"step": step, "loss": 1 / (1 + step)} for step in range(4)]
        write_run(tmp_path / "template", rows=rows, loss_keys={"beta": 0.1}, metrics={"loss": 0.25})
        copy_runs(tmp_path / "template", tmp_path / "runs", 22)
        runs = [read_run(tmp_path / "runs" / f"run_{number}", tmp_path) for number in (0, 1, 20, 21)]
        assert [(run.seed, run.number("loss.beta")) for run in runs] == [(0, 0.05), (1, 0.05), (0, 0.1), (1, 0.1)]
        assert all(run.finished and run.curves["loss"] == {0: 1.0, 1: 0.5, 2: 1 / 3, 3: 0.25} for run in runs)

    def test_a_lengthened_run_has_every_step_once(self, tmp_path: Path) -> None:
        write_run(tmp_path / "template", rows=[{"step": 0, "loss": 1.0}, {"step": 5, "loss": 2.0}])
        lengthen_run(tmp_path / "template", tmp_path / "long", 7)
        with (tmp_path / "long" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == list(range(1, 8))
        assert [float(row["loss"]) for row in rows] == [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]


class TestProcessTree:
    BUSY = "import time\nwhile time.process_time() < 0.4: pass\n"

    def measured(self, script: str) -> dict:
        """Usage of a process of its own, as the comparison starts it."""
        command = [sys.executable, "-I", process_tree.__file__, "usage.json", sys.executable, "-c", script]
        subprocess.run(command, check=True)
        return json.loads(Path("usage.json").read_text())

    def test_children_and_orphans_count(self) -> None:
        start = f"import subprocess, sys, os, time\nbusy = [sys.executable, '-c', {self.BUSY!r}]\n"
        waited = self.measured(start + "subprocess.run(busy)\nsys.exit(3)")
        assert waited["exit_code"] == 3
        assert waited["cpu_seconds"] > 0.4
        if sys.platform == "linux":
            left = self.measured(start + "subprocess.Popen(busy)\ntime.sleep(0.1)\nos._exit(0)")
            assert left["cpu_seconds"] > 0.02, "of a process that outlived its own parent"

    def test_memory_of_processes_is_added_up(self) -> None:
        if not Path("/proc/self/smaps_rollup").exists():
            pytest.skip("this system does not tell a process's proportional memory")
        mib = 2**20
        child = f"import time; x = b'1' * {96 * mib}; time.sleep(1.5)"
        usage = self.measured(
            f"import subprocess, sys\nx = b'1' * {64 * mib}\nsubprocess.run([sys.executable, '-c', {child!r}])"
        )
        assert usage["peak_bytes"] > 160 * mib
        assert 96 * mib < usage["largest_bytes"] < 150 * mib
