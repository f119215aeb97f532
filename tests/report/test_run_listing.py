"""The table of runs tells what their files tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from caldpo import cli
from caldpo.list import main
from caldpo.report.run_listing import read_listed
from tests.helpers.documents import ROOT
from tests.helpers.messages import names
from tests.report.runs import finals, held_out, write_run

ROWS = [held_out(0, 0.0, 0.0), held_out(10, -2.0, -5.0), {"step": 11, "loss": 0.5}]
ACCURACY = "val/rewards/accuracies"


def listed(capsys, *arguments):
    """The table's lines by their first cell, and the last lines."""
    capsys.readouterr()
    main([*map(str, arguments)])
    lines = capsys.readouterr().out.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line.strip()) == {"─"})
    body = [line for line in lines[rule + 1 :] if line.startswith(" ") and line.strip()]
    return {line.split()[0]: line for line in body}, [line for line in lines[rule + 1 :] if line[:1].strip()]


def test_what_is_known_of_a_finished_run(tmp_path):
    summary = {"planned_steps": 11, "overrides": ["model=hf", "model.path=/models/mine", "data.train='b/t.jsonl'"]}
    run = write_run(tmp_path / "a", "ipo", rows=ROWS, metrics=finals(ROWS[1]), summary=summary)
    os.utime(run / "summary.json", (1000, 1000))
    os.utime(run / "metrics.csv", (900, 900))
    found = read_listed(run, ACCURACY)
    assert (found.state, found.loss, found.model, found.data) == ("finished", "ipo", "tiny mine", "reviews t.jsonl")
    assert (found.step, found.planned, found.value, found.written) == (11, 11, 0.9, 1000)


def test_of_a_run_that_has_not_ended_the_last_rows_are_read(tmp_path):
    many = [{"step": step, **{f"terms/{i}": 0.123456789 for i in range(40)}} for step in range(12, 400)]
    rows = [*ROWS, *many, held_out(400, 0.0, 0.0, **{"rewards/accuracies": 0.75})]
    run = write_run(tmp_path / "a", rows=rows, status="failed", summary={"steps": None, "planned_steps": 500})
    with (run / "metrics.csv").open("a") as file:
        file.write("401,0.5")  # a row that is being written
    found = read_listed(run, ACCURACY)
    assert (found.state, found.step, found.planned, found.value) == ("failed", 400, 500, 0.75)
    assert (run / "metrics.csv").stat().st_size > 2**16, "only the end is read"


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ({"status": "interrupted"}, "interrupted"),
        ({"status": "running"}, "died"),  # nobody holds its lock
        ("{", "unreadable"),
        (None, "incomplete"),
    ],
)
def test_states(tmp_path, content, state):
    run = write_run(tmp_path / "a", rows=ROWS, status=None)
    if content is not None:
        (run / "summary.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert read_listed(run, ACCURACY).state == state


def test_the_table(tmp_path, capsys):
    for place, (loss, status) in enumerate((("dpo", "finished"), ("ipo", "failed"), ("cpo", "finished"))):
        extra = {"oracle__reward": 1.25} if loss == "dpo" else {}
        run = write_run(tmp_path / "sweep" / loss, loss, rows=ROWS, metrics=finals(ROWS[1], **extra), status=status)
        for name in ("summary.json", "metrics.csv"):
            os.utime(run / name, (10**9 + place, 10**9 + place))
    lines, last = listed(capsys, tmp_path)
    assert list(lines) == ["sweep/cpo", "sweep/ipo", "sweep/dpo"], "the newest first"
    names(lines["sweep/ipo"], "ipo", "tiny", "reviews", "11", "failed")
    names(last[0], "3 runs", "2 finished", "1 failed")
    lines, last = listed(capsys, tmp_path, "metric=oracle/reward", "newest=2")
    assert list(lines) == ["sweep/cpo", "sweep/ipo"]
    names(last[0], "3 runs", "newest 2")
    lines, _ = listed(capsys, tmp_path / "sweep" / "dpo", "metric=oracle/reward")
    names(lines["dpo"], "1.25")
    _, last = listed(capsys, tmp_path, "metric=val/nothing")
    names(" ".join(last), "val/nothing")


@pytest.mark.parametrize(
    "summary",
    [
        {"metrics": {ACCURACY: 10**400}, "steps": 10**400, "planned_steps": -1},
        {"metrics": {ACCURACY: "0.5"}, "steps": "5", "overrides": [None, {"a": 1}, "model.path="]},
        {"metrics": [1], "steps": None, "status": "x\x1b[31m", "loss_name": 5},
    ],
)
def test_odd_values_cost_themselves(tmp_path, capsys, summary):
    run = write_run(tmp_path / "a", rows=ROWS, summary=summary)
    (run / "metrics.csv").write_text("step,loss\n1e999,0.5\n")
    lines, last = listed(capsys, tmp_path)
    assert list(lines) == ["a"]
    assert "\x1b" not in "".join([*lines.values(), *last])


def test_names_stay_text(tmp_path, capsys):
    run = write_run(tmp_path / "x[red]", rows=ROWS, summary={"loss_name": "[bold]\x1b[31mdpo"})
    lines, _ = listed(capsys, tmp_path)
    assert "[red]" in str(lines)
    assert "[bold]" in str(lines)
    assert "\x1b" not in "".join(lines.values())
    assert run.is_dir()


def test_a_folder_without_runs_is_answered(tmp_path, capsys):
    for arguments in (["list", str(tmp_path / "none")], ["list", str(tmp_path)], ["list", "newest=0"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code in (1, 2)
    text = capsys.readouterr().err
    names(text, "folder", "newest=0:")


def test_nothing_heavy_is_imported(tmp_path):
    write_run(tmp_path / "a", rows=ROWS)
    heavy = ("torch", "transformers", "numpy", "pandas", "matplotlib", "pytorch_lightning")
    code = f"""
import sys
from caldpo.list import main
main([{str(tmp_path)!r}])
print("HEAVY:", *[name for name in {heavy} if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY:"


def test_a_reader_that_stops_is_no_error(tmp_path):
    for number in range(800):  # more than a pipe holds
        write_run(tmp_path / f"run{number}", rows=ROWS[:1])
    command = [sys.executable, "-m", "caldpo.list", str(tmp_path)]
    listing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert listing.stdout is not None
    listing.stdout.read(1)
    listing.stdout.close()
    assert listing.stderr is not None
    assert (listing.stderr.read(), listing.wait()) == (b"", 0)
