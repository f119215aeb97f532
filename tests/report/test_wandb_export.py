"""W&B's exports are read as the runs' own folders are."""

from __future__ import annotations

import csv

import pytest

from caldpo.compare import main
from caldpo.report.grouping import group_runs
from caldpo.report.read_runs import read_runs
from caldpo.report.shown_metrics import CHOSEN
from caldpo.report.wandb_export import read_exports
from tests.helpers.messages import names, refused
from tests.report.runs import finals, held_out, write_run

ROWS = [held_out(0, 0.0, 0.0), held_out(10, -2.0, -5.0), held_out(20, -3.0, -8.0)]


def write(path, header, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    return path


def history(path, rows):
    """As pandas writes what ``wandb.Api().run(...).history()`` returns: an index, W&B's own columns, one row a call."""
    metrics = [name for name in rows[0] if name != "step"]
    header = ["", "_step", "_runtime", "_timestamp", "trainer/global_step", *metrics]
    lines = [[n, 2 * n, 1.5, 1.7e9, row["step"], *(row[m] for m in metrics)] for n, row in enumerate(rows)]
    return write(path, header, *lines)


def chart(path, metric, curves, over="trainer/global_step"):
    """As the menu of a chart saves it: of each run the metric and its extremes, where the steps are not W&B's own
    also those."""
    header = [over]
    for name in curves:
        header += [f"{name} - {what}{end}" for what in ("_step", metric) for end in ("", "__MIN", "__MAX")]
    steps = sorted({step for curve in curves.values() for step in curve})
    rows = [[step, *(c for curve in curves.values() for c in [step] * 3 + [curve.get(step, "")] * 3)] for step in steps]
    return write(path, header, *rows)


def test_a_history_has_the_curves_of_the_folder(tmp_path):
    folder = write_run(tmp_path / "sweep" / "dpo", rows=ROWS, metrics=finals(ROWS[-1]))
    file = history(tmp_path / "loss=dpo,seed=3.csv", ROWS)
    (own,), (read,) = read_runs([folder], folder.parent), read_exports([file])
    assert {name: dict(curve) for name, curve in read.curves.items()} == {
        name: dict(curve) for name, curve in own.curves.items()
    }
    assert {name: read.final[name] for name in own.final} == dict(own.final)
    assert (read.loss, read.seed, read.status, read.name) == ("dpo", 3, "finished", "loss=dpo,seed=3")
    assert read.reward_beta == 0.1, "as rewards are a multiple of log-ratios"
    assert read.overrides == ()


def test_charts_of_several_metrics_are_put_together_by_run(tmp_path):
    curves = {"loss=dpo seed=0 x": {0: 0.0, 10: -2.0}, "loss=ipo seed=1 x": {0: 0.0, 20: -4.5}}
    other = {name: {step: 2 * value for step, value in curve.items()} for name, curve in curves.items()}
    files = [
        chart(tmp_path / "a.csv", "val/log_ratios/chosen", curves),
        chart(tmp_path / "b.csv", "val/log_ratios/rejected", other),
    ]
    dpo, ipo = read_exports(files)
    assert [dpo.loss, dpo.seed, ipo.loss, ipo.seed] == ["dpo", 0, "ipo", 1]
    assert dict(dpo.curves["val/log_ratios/chosen"]) == {0: 0.0, 10: -2.0}
    assert dict(ipo.curves["val/log_ratios/rejected"]) == {0: 0.0, 20: -9.0}
    assert set(ipo.curves) == {"val/log_ratios/chosen", "val/log_ratios/rejected"}
    assert any("configuration" in note for note in dpo.notes)


def test_the_table_adds_configuration_state_and_seeds(tmp_path):
    header = ["Name", "State", "Notes", "User", "Tags", "Created", "Runtime", "Sweep"]
    header += ["loss_name", "seed", "data.seed", "loss.beta", "reward_beta", "val/log_ratios/chosen", "loss"]
    rows = [
        ["one", "finished", "-", "me", "", "2026", "12", "", "dpo", "0", "0", "0.1", "0.2", "-2.0", "0.5"],
        ["two", "finished", "-", "me", "", "2026", "12", "", "dpo", "1", "1", "0.1", "0.2", "-4.0", "0.5"],
        ["three", "crashed", "-", "me", "", "2026", "12", "", "ipo", "0", "0", "0.1", "0.2", "-9.0", "0.5"],
    ]
    curves = {"one": {0: 0.0, 10: -2.5}, "two": {0: 0.0, 10: -4.0}}
    files = [write(tmp_path / "t.csv", header, *rows), chart(tmp_path / "c.csv", "val/log_ratios/chosen", curves)]
    dpo, ipo = group_runs(read_runs([], tmp_path, exports=files))
    assert (dpo.label, dpo.seeds, ipo.runs[0].status) == ("dpo", 2, "died")
    assert dpo.finals(CHOSEN.final) == [-2.0, -4.0], "the summary's count, as for folders"
    assert dpo.curves(CHOSEN.curve) == [{0: 0.0, 10: -2.5}, {0: 0.0, 10: -4.0}]
    assert [run.reward_beta for run in dpo.runs] == [0.2, 0.2]


def test_runs_of_unknown_settings_are_not_taken_for_seeds_of_one(tmp_path):
    curves = {f"loss=dpo seed={i} train_12-0{i}": {0: 0.0, 10: -i} for i in (1, 2)} | {"my run": {0: 0.0, 10: 1.0}}
    groups = group_runs(read_runs([], tmp_path, exports=[chart(tmp_path / "c.csv", "val/log_ratios/chosen", curves)]))
    assert [g.label for g in groups] == ["dpo run=train_12-01", "dpo run=train_12-02", "my run"]


def test_a_report_of_a_folder_beside_exports(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "sweep" / "ipo", "ipo", rows=ROWS, metrics=finals(ROWS[-1]))
    history(tmp_path / "loss=dpo,seed=0.csv", ROWS)
    main(["sweep", "loss=dpo,seed=0.csv", "output=both"])
    said = capsys.readouterr().out
    names(said, "data and model are not known", "dpo")
    text = (tmp_path / "both" / "report.md").read_text()
    assert "loss=dpo,seed=0.csv" in text
    commands = [line for line in text.splitlines() if line.startswith("python -m caldpo.train")]
    assert len(commands) == 1, "an export has none"
    assert (tmp_path / "both" / "reward_dynamics.png").is_file()


def test_a_runs_own_metrics_stand_for_its_folder(tmp_path, capsys):
    run = write_run(tmp_path / "a", "ipo", rows=ROWS, metrics=finals(ROWS[-1]))
    main([str(run / "metrics.csv")])
    assert (run / "report.md").is_file()
    assert "ipo" in capsys.readouterr().out


def test_bad_cells_and_w_and_bs_own_steps_are_named(tmp_path):
    file = chart(tmp_path / "c.csv", "val/loss", {"r": {0: 1.0, 10: "x", 20: "NaN", 2.5: 1, 1e999: 1}}, over="Step")
    (run,) = read_exports([file])
    assert list(run.curves["val/loss"]) == [0, 20]
    assert str(run.curves["val/loss"][20]) == "nan"
    said = " ".join(run.notes)
    names(said, "c.csv", "'x'", "not optimiser steps")


@pytest.mark.parametrize("header", [["a", "b"], ["Relative Time (Process)", "r - val/loss"], ["Step"], []])
def test_another_csv_is_refused_with_what_can_be_read(tmp_path, header):
    file = write(tmp_path / "x.csv", header, header)
    with refused(key="sweep", value="x.csv", remedy=("trainer/global_step", "history")):
        read_exports([file])


def test_runs_of_one_name_stay_apart(tmp_path):
    """As ``WANDB_NAME`` names all seeds of a sweep alike."""
    header = ["Name", "State", "ID", "loss_name", "seed", "loss.beta", "val/log_ratios/chosen"]
    rows = [
        ["baseline", "finished", "aa", "dpo", 0, 0.1, -1.0],
        ["baseline", "finished", "bb", "dpo", 1, 0.1, -5.0],
        ["ours", "finished", "cc", "cal_dpo", 0, 0.1, 1.0],
        ["ours", "failed", "dd", "cal_dpo", 1, 0.1, ""],
    ]
    table = write(tmp_path / "table.csv", header, *rows)
    dpo, ours = group_runs(read_exports([table]))
    assert dpo.finals(CHOSEN.final) == [-1.0, -5.0]
    assert [(run.name, run.status) for run in ours.runs] == [("ours (cc)", "finished"), ("ours (dd)", "failed")]
    of_both = chart(tmp_path / "chart.csv", "val/log_ratios/chosen", {"baseline": {0: 0.0, 10: -1.0}})
    for files in ([table, of_both], [of_both, table]):
        with refused("baseline", key="sweep", remedy="histories"):
            read_exports(files)
    twice = write(tmp_path / "twice.csv", ["Step", "a - val/loss", "a - val/loss"], [0, 1.0, 2.0])
    with refused(key="sweep", value=twice, remedy="names of their own"):
        read_exports([twice])
