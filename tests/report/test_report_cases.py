"""Reports of special sweeps: few or diverged runs, several settings, and what gives no report at all."""

from __future__ import annotations

import csv
import errno
import json
import math
import os

import pytest

from caldpo.compare import main
from caldpo.config.run_lock import run_lock
from caldpo.report.comparison import compare_runs
from tests.helpers.messages import names, refused
from tests.report.runs import finals, held_out, table, write_run


def test_a_clear_best_is_bold(tmp_path):
    for loss, accuracies in {"dpo": (0.70, 0.71), "ipo": (0.90, 0.91)}.items():
        for seed, accuracy in enumerate(accuracies):
            rows = [held_out(0, 0, 0), held_out(20, 1.0, -1.0, **{"rewards/accuracies": accuracy})]
            write_run(tmp_path / f"{loss}{seed}", loss, seed, rows=rows, metrics=finals(rows[-1]))
    compare_runs(str(tmp_path), dpi=40)
    final = table((tmp_path / "report.md").read_text(), "Final figures on held-out pairs")
    # the difference 0.2 is beyond t(0.975, 2) * sd 0.00707 * sqrt(1/2 + 1/2) = 0.030
    assert final["ipo"]["accuracy (share of pairs)"] == "**0.9050 ± 0.0071**"
    assert final["dpo"]["accuracy (share of pairs)"] == "0.7050 ± 0.0071"
    assert final["ipo"]["chosen log-ratio (nats)"] == "1.00 ± 0", "no direction is better, so none is marked"


def test_differences_beside_the_loss_are_told(tmp_path):
    rows = [held_out(0, 0, 0), held_out(20, 1.0, -1.0)]
    for loss, lr in (("dpo", 0.1), ("ipo", 0.2)):
        write_run(tmp_path / loss, loss, rows=rows, metrics=finals(rows[-1]), config={"optim": {"lr": lr}})
    compare_runs(str(tmp_path), dpi=40)
    names((tmp_path / "report.md").read_text(), "`optim.lr` (0.1, 0.2)")


def test_a_single_run_and_data_without_known_reward(tmp_path):
    rows = [held_out(0, 0.0, 0.0), held_out(20, -1.5, -4.0)]
    run = write_run(tmp_path / "run", rows=rows, metrics=finals(rows[-1]))
    compare_runs(str(run), dpi=40)
    report = (run / "report.md").read_text()
    assert "Against the known reward" not in report
    final = table(report, "Final figures on held-out pairs")
    assert final["dpo"]["chosen log-ratio (nats)"] == "-1.50"
    assert "**" not in report.split("## How to read this")[0]
    with (run / "comparison.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["run"] == "run"


def test_a_seed_that_diverged_is_shown(tmp_path):
    for seed, last in enumerate((1.0, math.nan)):
        rows = [held_out(0, 0.0, 0.0), held_out(20, last, -1.0)]
        write_run(
            tmp_path / str(seed),
            seed=seed,
            rows=rows,
            metrics={"val/log_ratios/chosen": None if seed else 1.0},
        )
    compare_runs(str(tmp_path), dpi=40)
    report = (tmp_path / "report.md").read_text()
    final = table(report, "Final figures on held-out pairs")
    assert final["dpo"]["chosen log-ratio (nats)"] == "not a number"
    names(report, "above 0 in 1 of 2", "not a number in 1 of 2")


def test_a_repeated_seed_is_told_and_a_picture_of_earlier_runs_does_not_stay(tmp_path):
    (tmp_path / "loss_terms.png").write_bytes(b"old")
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
    for name in ("a", "b"):
        write_run(tmp_path / name, rows=rows, metrics=finals(rows[-1]))
    compare_runs(str(tmp_path), dpi=40)
    (line,) = (line for line in (tmp_path / "report.md").read_text().splitlines() if "`a`, `b`" in line)
    names(line, "same", "seed")
    assert not (tmp_path / "loss_terms.png").exists()


def test_notes_and_tags_of_runs_stand_in_the_report_and_make_no_setting(tmp_path):
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
    for seed, own in enumerate(({"notes": "first | try", "tags": ["a", "b c"]}, {"notes": None, "tags": []}, {})):
        write_run(tmp_path / f"r{seed}", seed=seed, rows=rows, metrics=finals(rows[-1]), config=own)
    compare_runs(str(tmp_path), dpi=40)
    report = (tmp_path / "report.md").read_text()
    assert "`dpo`: chosen above 0 in 3 of 3 seeds" in report, "one setting"
    assert table(report, "Notes and tags") == {"r0": {"run": "`r0`", "tags": "a, b c", "notes": "first \\| try"}}


def test_no_run_finished(tmp_path):
    write_run(tmp_path / "x", rows=None, status="failed", error="CaldpoError: loss.beta=0: must be above 0")
    with refused("x:", "failed", "CaldpoError: loss.beta=0: must be above 0", key="sweep"):
        compare_runs(str(tmp_path))
    assert not (tmp_path / "report.md").exists()


def test_finished_runs_without_held_out_metrics(tmp_path):
    write_run(tmp_path / "x", rows=None)
    with refused("val/log_ratios/chosen", "x:", "no metrics.csv", key="sweep"):
        compare_runs(str(tmp_path))


def test_one_finished_run_without_metrics_does_not_stop_the_others(tmp_path):
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
    write_run(tmp_path / "whole", "dpo", rows=rows, metrics=finals(rows[-1]))
    write_run(tmp_path / "bare", "ipo", rows=None)
    compare_runs(str(tmp_path), dpi=40)
    report = (tmp_path / "report.md").read_text()
    lines = {line.partition(":")[0]: line for line in report.splitlines() if line.startswith("- `")}
    names(lines["- `bare`"], "metrics.csv")
    names(lines["- `ipo`"], "log-ratios")


def test_a_run_under_way_and_one_that_died_enter_no_mean(tmp_path, capsys):
    """The figures of an unfinished run are those of another number of steps, however good they look."""
    for seed, (status, accuracy) in enumerate(
        [("finished", 0.6), ("finished", 0.7), ("running", 0.99), ("running", 1)]
    ):
        rows = [held_out(0, 0, 0), held_out(10, 1.0, -1.0, **{"rewards/accuracies": accuracy})]
        write_run(tmp_path / f"seed={seed}", seed=seed, rows=rows, metrics=finals(rows[-1]), status=status)
    with run_lock(tmp_path / "seed=2"):
        compare_runs(str(tmp_path), dpi=40)
    report = (tmp_path / "report.md").read_text()
    head = report.split("## What was compared")[0]
    lines = {line.partition(":")[0]: line for line in head.splitlines() if line.startswith("- `")}
    names(lines["- `seed=2`"], "running", "step 10 of 20")
    names(lines["- `seed=3`"], "died", "step 10 of 20")
    names(head, "`dpo` (2 of 4)")
    final = table(report, "Final figures on held-out pairs")
    assert final["dpo"]["accuracy (share of pairs)"] == "0.650 ± 0.071"
    out = " ".join(capsys.readouterr().out.split())
    names(out, "seed=3, died at step 10 of 20", "process")
    with (tmp_path / "comparison.csv").open() as file:
        assert [row["rewards/accuracies"] for row in csv.DictReader(file)] == ["0.6", "0.7", "", ""]


@pytest.mark.parametrize("typed", [["a", "b"], ["[a,b]"], ["sweep=[a,b]"]])
def test_several_folders_are_one_report(typed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
    for place, loss in (("a", "dpo"), ("b", "ipo")):
        write_run(tmp_path / place / "x", loss, rows=rows, metrics=finals(rows[-1]))
        record = {"hydra": {"overrides": {"task": [f"loss={loss}", "seed=0,1"]}}}
        (tmp_path / place / "multirun.yaml").write_text(json.dumps(record))
    main([*typed, "dpi=30"])
    (place,) = (tmp_path / "outputs").iterdir()
    report = (place / "report.md").read_text()
    assert report.startswith("# Comparison of a, b\n")
    assert "caldpo.train -m loss=dpo seed=0,1\npython -m caldpo.train -m loss=ipo seed=0,1\n" in report
    assert "  # a/x" in report
    assert set(table(report, "Final figures on held-out pairs")) == {"dpo", "ipo"}
    assert f"{place.relative_to(tmp_path)}/report.md" in capsys.readouterr().out
    assert not (tmp_path / "a" / "report.md").exists()


def test_a_report_elsewhere_and_a_run_named_twice(tmp_path):
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
    write_run(tmp_path / "a" / "x", rows=rows, metrics=finals(rows[-1]))
    compare_runs([str(tmp_path / "a"), str(tmp_path / "a" / "x")], output=str(tmp_path / "new" / "o"), dpi=30)
    assert table((tmp_path / "new" / "o" / "report.md").read_text(), "What was compared")["runs"][""].startswith(
        "1 of 1"
    )
    with refused(key="sweep", value=tmp_path / "c"):
        compare_runs([str(tmp_path / "a"), str(tmp_path / "c")])
    with refused(key="sweep", remedy="python -m caldpo.compare outputs/SWEEP"):
        compare_runs([])


def test_a_sweep_that_finished_has_nothing_at_its_head(tmp_path):
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
    write_run(tmp_path / "a", rows=rows, metrics=finals(rows[-1]))
    compare_runs(str(tmp_path), dpi=40)
    assert "Incomplete" not in (tmp_path / "report.md").read_text()


def test_what_cannot_be_written_leaves_the_earlier_report(tmp_path, monkeypatch):
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
    write_run(tmp_path / "a", rows=rows, metrics=finals(rows[-1]))
    compare_runs(str(tmp_path), dpi=40)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("caldpo.utils.atomic_io.os.fsync", full)
    with refused("report", "No space left on device"):
        compare_runs(str(tmp_path), dpi=50)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(("key", "value"), [("band", "std"), ("dpi", 0), ("dpi", "high")])
def test_bad_options_are_named(tmp_path, key, value):
    with refused(key=key, value=value):
        compare_runs(str(tmp_path), **{key: value})


def test_a_report_that_cannot_be_written(tmp_path):
    rows = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
    write_run(tmp_path / "a", rows=rows, metrics=finals(rows[-1]))
    (tmp_path / "comparison.csv").mkdir()
    with refused("report", os.strerror(errno.EISDIR)):
        compare_runs(str(tmp_path), dpi=40)


def test_runs_that_failed_alike_are_told_once(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"seed={seed}", seed=seed, rows=None, status="failed", error="the same", job=seed)
    with refused("seed=0, seed=1, seed=2:", "failed", "the same"):
        compare_runs(str(tmp_path))
