"""Results of evaluation in the report, the table and on the terminal: figures, the best, and what is not alike."""

from __future__ import annotations

import csv
import io
import math
import re

import pytest
from rich.console import Console

from caldpo.config.find_runs import find_runs
from caldpo.report.comparison import compare_runs
from caldpo.report.comparison_console import print_comparison
from caldpo.report.comparison_table import write_comparison
from caldpo.report.grouping import group_runs
from caldpo.report.markdown_report import report
from caldpo.report.read_runs import read_runs
from tests.helpers.messages import names
from tests.report.results import accuracy, content, measure, reliability
from tests.report.runs import finals, held_out, table, write_run

ROWS = [held_out(0, 0.0, 0.0), held_out(20, 1.0, -1.0)]
COLUMN = "accuracy (share of pairs)"


def run(folder, loss, seed=0, evaluation=None, **others):
    return write_run(
        folder / f"{loss}{seed}",
        loss,
        seed,
        rows=ROWS,
        metrics=finals(ROWS[-1], oracle__reward=0.5),
        evaluation=evaluation,
        **others,
    )


def settings_in(folder):
    return group_runs(read_runs(find_runs(folder), folder))


def report_of(folder):
    return report(settings_in(folder), [folder], "range", [])


def said_of(folder):
    """What the terminal says."""
    console = Console(file=io.StringIO(), width=200)
    print_comparison(console, settings_in(folder), [])
    return console.file.getvalue()


def section(text):
    return text.split("## Evaluation\n")[1].split("\n## ")[0]


def test_mean_and_spread_over_seeds_and_a_clear_best(tmp_path):
    for loss, values in {"dpo": (0.70, 0.72, 0.71), "ipo": (0.90, 0.92, 0.94)}.items():
        for seed, value in enumerate(values):
            run(tmp_path, loss, seed, accuracy(value, value - 0.2, value + 0.2))
    rows = table(report_of(tmp_path), "preference")
    # sd 0.01 and 0.02: the difference 0.21 is beyond t(0.975, 4) sqrt(0.00025 * 2 / 3) = 0.036, whatever the runs say
    assert rows["dpo"] == {"setting": "`dpo`", "seeds": "3", "examples": "256", COLUMN: "0.710 ± 0.010"}
    assert rows["ipo"][COLUMN] == "**0.920 ± 0.020**"


def test_no_best_where_seeds_spread(tmp_path):
    for loss, values in {"dpo": (0.5, 0.9), "ipo": (0.8, 0.9)}.items():
        for seed, value in enumerate(values):
            run(tmp_path, loss, seed, accuracy(value, value - 0.01, value + 0.01))
    assert "**" not in section(report_of(tmp_path))


@pytest.mark.parametrize(("low", "cell"), [(0.81, "**0.90 [0.81, 0.95]**"), (0.79, "0.90 [0.79, 0.95]")])
def test_with_a_single_seed_the_intervals_within_runs_decide(tmp_path, low, cell):
    run(tmp_path, "dpo", 0, accuracy(0.7, 0.6, 0.8))
    run(tmp_path, "ipo", 0, accuracy(0.9, low, 0.95))
    rows = table(report_of(tmp_path), "preference")
    assert rows["ipo"][COLUMN] == cell
    assert rows["dpo"][COLUMN] == "0.70 [0.60, 0.80]"


def test_nothing_is_marked_where_one_setting_has_seeds_and_another_one(tmp_path):
    for seed in (0, 1):
        run(tmp_path, "dpo", seed, accuracy(0.5 + 0.01 * seed, 0.4, 0.6))
    run(tmp_path, "ipo", 0, accuracy(0.9, 0.8, 0.95))
    rows = table(report_of(tmp_path), "preference")
    assert rows["dpo"][COLUMN] == "0.5050 ± 0.0071"
    assert rows["ipo"][COLUMN] == "0.90 [0.80, 0.95]"


def test_titles_directions_and_meanings_are_the_files_own(tmp_path):
    """A suite that no code knows: its measures need no entry anywhere."""
    words = {"title": "made-up error", "unit": "furlongs", "meaning": "how far it is off", "better": "lower"}
    for loss, value in {"dpo": 1.0, "ipo": 9.0}.items():
        measures = {
            "off": measure(value, value - 1, value + 1, **words),
            "drawn": measure(value, value - 1, value + 1, **words | {"title": "neutral", "better": None}),
            "hidden": measure(value, **words | {"title": "secondary", "main": False}),
        }
        run(tmp_path, loss, 0, {"novel": content(measures)})
    text = report_of(tmp_path)
    rows = table(text, "novel")
    assert rows["dpo"]["made-up error (furlongs)"] == "**1.0 [0.0, 2.0]**"
    assert rows["ipo"]["made-up error (furlongs)"] == "9.0 [8.0, 10.0]"
    assert rows["dpo"]["neutral (furlongs)"] == "1.0 [0.0, 2.0]"
    assert "- **made-up error** (novel, furlongs): how far it is off." in text
    assert "secondary" not in text


def test_the_table_of_runs_keeps_evaluation_and_training_apart(tmp_path):
    run(tmp_path, "dpo", 0, {"oracle": content({"reward": measure(0.75, main=False), "kl": measure(None)})})
    run(tmp_path, "ipo", 0)
    write_comparison(tmp_path / "comparison.csv", settings_in(tmp_path))
    with (tmp_path / "comparison.csv").open() as file:
        dpo, ipo = csv.DictReader(file)
    assert (dpo["oracle/reward"], dpo["evaluation/oracle/reward"]) == ("0.5", "0.75")
    assert dpo["evaluation/oracle/kl"] == "nan", "measured, and not a number"
    assert ipo["evaluation/oracle/reward"] == "", "not measured"
    names = list(dpo)
    assert names.index("oracle/reward") < names.index("evaluation/oracle/kl")


def test_a_sweep_evaluated_in_part(tmp_path):
    for seed in range(3):
        run(tmp_path, "dpo", seed, accuracy(0.7) if seed < 2 else None)
        run(tmp_path, "ipo", seed)
    run(tmp_path, "cpo", 0, accuracy(0.99), status="failed")
    text = report_of(tmp_path)
    rows = table(text, "preference")
    assert (rows["dpo"]["seeds"], rows["dpo"][COLUMN]) == ("2 of 3", "0.700 ± 0 (n=2)")
    assert (rows["ipo"]["seeds"], rows["ipo"]["examples"], rows["ipo"][COLUMN]) == ("0 of 3", "-", "-")
    assert rows["cpo"][COLUMN] == "-", "a run that failed was trained for fewer steps"
    names(text, "`dpo` (seed 2), `ipo` (seeds 0, 1, 2)")
    names(said_of(tmp_path), "preference", "2 of 6", "dpo (seed 2), ipo (seeds 0, 1, 2)")


def test_evaluations_that_were_not_alike_are_told(tmp_path):
    run(tmp_path, "dpo", 0, accuracy(0.7, suite={"bins": 10}, settings={"max_pairs": 50}))
    run(tmp_path, "ipo", 0, accuracy(0.8, suite={"bins": 20}, step=10, pairs="other"))
    text = section(report_of(tmp_path))
    bold = [line for line in text.splitlines() if line.startswith("**") or "**" in line]
    differ, pairs, step = (next((line for line in bold if fact in line), "") for fact in ("bins", "pairs.", "step 10"))
    names(differ, "`suite.bins` (10, 20)", "`settings.max_pairs` (50, None)")
    names(pairs, "seed (0)", "held-out pairs")
    names(step, "`ipo` (seed 0)")


def test_evaluations_that_were_alike_give_no_warning(tmp_path):
    """Pairs that follow the seed, and other words for the final checkpoint are no difference."""
    for loss in ("dpo", "ipo"):
        for seed in (0, 1):
            asked = {"checkpoint": "final" if seed else "last"}
            results = accuracy(0.7 + 0.01 * seed, settings=asked, pairs=f"pairs of {seed}")
            run(tmp_path, loss, seed, results)
    assert "**" not in section(report_of(tmp_path))


def test_rewards_measured_in_several_units_are_told_and_mark_nobody(tmp_path):
    """Also where each is its run's own, as it was when reward_beta followed the loss's beta."""
    run(tmp_path, "dpo", 0, accuracy(0.7, 0.69, 0.71, settings={"reward_beta": 0.1}))
    run(tmp_path, "ipo", 0, accuracy(0.9, 0.89, 0.91, settings={"reward_beta": 2.0}), reward_beta=2.0)
    text = section(report_of(tmp_path))
    assert "`settings.reward_beta` (0.1, 2.0)" in text
    assert "**0.900" not in text


@pytest.mark.parametrize(("betas", "unit"), [((0.2, 0.2), "0.2 x nats"), ((0.2, 0.3), "reward_beta x nats")])
def test_the_unit_of_measured_rewards_is_told(betas, unit, tmp_path):
    margin = measure(1.5, title="reward margin", unit="reward_beta x nats")
    for loss, beta in zip(("dpo", "ipo"), betas, strict=True):
        run(tmp_path, loss, 0, {"preference": content({"margin": margin}, settings={"reward_beta": beta})})
    assert f"reward margin ({unit})" in table(report_of(tmp_path), "preference")["dpo"]


def test_notes_are_told_once(tmp_path):
    for loss in ("dpo", "ipo"):
        odd = ["an odd thing"] if loss == "ipo" else []
        run(tmp_path, loss, 0, accuracy(0.7, notes=["the same for all", *odd]))
    text = section(report_of(tmp_path))
    assert text.count("- the same for all\n") == 1
    assert "- an odd thing (`ipo` (seed 0))" in text


def test_a_single_evaluated_run(tmp_path):
    bins = reliability((0.2, 0.25, 0.1, 50), (0.7, 0.75, 0.9, 50))
    folder = run(tmp_path, "dpo", 0, accuracy(0.7, 0.6, 0.8, details=bins))
    compare_runs(str(folder), dpi=40)
    text = (folder / "report.md").read_text()
    assert table(text, "preference")["dpo"][COLUMN] == "0.70 [0.60, 0.80]"
    assert (folder / "calibration.png").stat().st_size > 5000
    assert re.search(r"!\[[^]]+\]\(calibration\.png\)", text)


def test_without_evaluation_there_is_no_word_of_it(tmp_path, capsys):
    (tmp_path / "calibration.png").write_bytes(b"of earlier runs")
    run(tmp_path, "dpo")
    compare_runs(str(tmp_path), dpi=40)
    assert "Evaluation" not in (tmp_path / "report.md").read_text()
    assert "evaluated" not in capsys.readouterr().out
    assert not (tmp_path / "calibration.png").exists()


def test_a_measure_that_is_not_a_number_is_shown_and_marks_nobody(tmp_path):
    run(tmp_path, "dpo", 0, accuracy(math.nan))
    run(tmp_path, "ipo", 0, accuracy(0.9, 0.8, 0.95))
    rows = table(report_of(tmp_path), "preference")
    assert rows["dpo"][COLUMN] == "not a number"
    assert rows["ipo"][COLUMN] == "0.90 [0.80, 0.95]"
