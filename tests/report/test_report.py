"""The command's work as a whole: files, numbers, what is listed, and what is refused."""

from __future__ import annotations

import csv
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from caldpo.config.conf_dir import conf_dir
from caldpo.report.comparison import compare_runs
from tests.helpers.messages import names
from tests.report.runs import finals, held_out, table, write_run

BETA = 0.1
# chosen, rejected, accuracy and win rate at the end, by loss and seed
ENDS = {
    ("dpo", 0): (-8.0, -20.0, 0.90, 0.60),
    ("dpo", 1): (-10.0, -24.0, 0.92, 0.62),
    ("dpo", 2): (-12.0, -31.0, 0.91, 0.61),
    ("slic", 0): (0.5, -6.0, 0.91, 0.70),
    ("slic", 1): (-0.5, -6.5, 0.92, 0.90),
    ("slic", 2): (0.6, -7.0, 0.90, 0.80),
    ("cal_dpo", 0): (1.0, -2.0, 0.92, 0.84),
    ("cal_dpo", 1): (1.2, -2.2, 0.90, 0.83),
    ("cal_dpo", 2): (1.1, -2.1, 0.91, 0.85),
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep of three losses and three seeds, a failed, an interrupted and a killed run; compared."""
    folder = tmp_path_factory.mktemp("outputs") / "sweep"
    for job, ((loss, seed), (chosen, rejected, accuracy, win_rate)) in enumerate(ENDS.items()):
        start = held_out(0, 0.0, 0.0)
        end = held_out(20, chosen, rejected, **{"rewards/accuracies": accuracy, "loss": 0.6})
        training = {"step": 19, "loss": 0.5, "logps/chosen": -40.0}
        if loss != "slic":
            training["log_ratios/chosen"] = chosen + 0.25
        metrics = finals(training, oracle__win_rate=win_rate, oracle__kl=2.0 + seed, oracle__reward=0.5) | finals(end)
        write_run(
            folder / f"loss={loss},seed={seed}",
            loss,
            seed,
            rows=[start, training, end],
            metrics=metrics,
            loss_keys={} if loss == "slic" else {"beta": BETA},
            overrides=["trainer.max_steps=20"],
            job=job,
            summary={"formula": f"formula of {loss}"},
        )
    start = held_out(0, 0.0, 0.0)
    for loss, seed, status in (("cal_dpo", 3, "failed"), ("ipo", 0, "interrupted"), ("cpo", 0, None)):
        write_run(
            folder / f"loss={loss},seed={seed}",
            loss,
            seed,
            rows=[start, held_out(5, 99.0, 99.0)],
            metrics=finals(held_out(5, 99.0, 99.0)),
            status=status,
            error="CaldpoError: the gradient | is not a number\nat step 6" if status == "failed" else None,
            overrides=["trainer.max_steps=20"],
            loss_keys={"beta": BETA},
        )
    record = {"hydra": {"overrides": {"task": ["loss=dpo,slic,cal_dpo", "seed=0,1,2"]}}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump(record))
    compare_runs(str(folder), dpi=60)
    return folder


@pytest.fixture(scope="module")
def report(sweep):
    return (sweep / "report.md").read_text()


@pytest.fixture(scope="module")
def rows(sweep):
    with (sweep / "comparison.csv").open() as file:
        return {(row["loss"], int(row["seed"])): row for row in csv.DictReader(file)}


def test_one_row_per_run_with_the_figures_of_finished_ones(rows):
    assert len(rows) == len(ENDS) + 3
    for (loss, seed), (chosen, rejected, accuracy, win_rate) in ENDS.items():
        row = rows[loss, seed]
        assert row["status"] == "finished"
        assert row["run"] == f"loss={loss},seed={seed}"
        assert row["setting"] == loss
        assert float(row["val/log_ratios/chosen"]) == chosen
        assert float(row["val/log_ratios/rejected"]) == rejected
        assert float(row["val/rewards/margins"]) == pytest.approx(BETA * (chosen - rejected))
        assert float(row["val/rewards/accuracies"]) == accuracy
        assert float(row["oracle/win_rate"]) == win_rate
        assert row["loss.beta"] == ("" if loss == "slic" else "0.1")
        assert float(row["log_ratios/chosen"]) == chosen, "a plain name is the held-out value, for every loss"
        assert row["train/log_ratios/chosen"] == ("" if loss == "slic" else str(chosen + 0.25))
        assert (row["val/loss"], row["train/loss"]) == ("0.6", "0.5"), "the column loss names the loss"


def test_runs_that_did_not_finish_have_a_row_without_figures(rows):
    """They stand at another step, and a mean over the column must not take them in."""
    for key, status in {
        ("cal_dpo", 3): "failed",
        ("ipo", 0): "interrupted",
        ("cpo", 0): "incomplete",
    }.items():
        assert rows[key]["status"] == status
        assert rows[key]["val/log_ratios/chosen"] == ""


def test_final_figures_by_hand(report):
    final = table(report, "Final figures on held-out pairs")
    # dpo: chosen -8, -10, -12: mean -10, sd 2; rejected -20, -24, -31: mean -25, sd sqrt(31)
    assert final["dpo"]["chosen log-ratio (nats)"] == "-10.0 ± 2.0"
    assert final["dpo"]["rejected log-ratio (nats)"] == f"-25.0 ± {math.sqrt(31):.1f}"
    # margins 12, 14, 19: mean 15, sd sqrt(13)
    assert final["dpo"]["log-ratio margin (nats)"] == f"15.0 ± {math.sqrt(13):.1f}"
    assert final["dpo"]["reward margin (0.1 x nats)"] == f"1.50 ± {math.sqrt(0.13):.2f}"
    assert final["cal_dpo"]["chosen log-ratio (nats)"] == "1.10 ± 0.10"
    assert final["cal_dpo"]["accuracy (share of pairs)"] == "0.910 ± 0.010"
    assert final["cal_dpo"]["seeds"] == "3 of 4"
    assert final["ipo"]["seeds"] == "0 of 1"
    assert final["ipo"]["chosen log-ratio (nats)"] == "-"


def test_a_best_is_marked_only_beyond_the_spread(report):
    assert "**" not in report.split("## Final figures on held-out pairs")[1].split("\n\n")[1], (
        "accuracies of the three settings are the same"
    )
    known = table(report, "Against the known reward")
    # 0.84 +- 0.01 against 0.80 +- 0.10: t(0.975, 4) * sqrt((0.01^2 + 0.1^2) / 2 * 2/3) = 0.16
    assert known["cal_dpo"]["win rate (share of prompts)"] == "0.840 ± 0.010"
    assert known["slic"]["win rate (share of prompts)"] == "0.80 ± 0.10"


def test_where_the_chosen_log_ratio_ended(report):
    ended = {loss: end_of(loss, report) for loss in ("dpo", "slic", "cal_dpo")}
    names(ended["dpo"], "below 0 in 3 of 3", "-10.0 ± 2.0 nats", "0 to 15.0 nats")
    names(ended["slic"], "above 0 in 2 of 3", "below 0 in 1 of 3")
    names(ended["cal_dpo"], "above 0 in 3 of 3", "1.10 ± 0.10 nats", "0 to 3.20")


def end_of(loss, report):
    """The line about where the chosen log-ratio of a loss ended."""
    (line,) = (line for line in report.splitlines() if line.startswith(f"- `{loss}`") and " 0 in " in line)
    return line


def test_unfinished_runs_are_listed_with_their_errors(report):
    listed = table(report, "Runs that did not finish")
    failed = listed["loss=cal_dpo,seed=3"]
    assert failed["status"] == "failed"
    assert failed["last step logged"] == "5"
    assert failed["error"] == "CaldpoError: the gradient \\| is not a number at step 6"
    assert listed["loss=ipo,seed=0"]["status"] == "interrupted"
    names(listed["loss=cpo,seed=0"]["error"], "no summary")
    assert "99" not in report, "figures of unfinished runs appear nowhere"


def test_the_head_says_what_is_incomplete(report):
    head = report.split("## What was compared")[0]
    names(head, "3 of 12", "`cpo`, `ipo`", "`cal_dpo` (3 of 4)")
    lines = {line.partition(":")[0]: line for line in head.splitlines() if line.startswith("- ")}
    names(lines["- `loss=cal_dpo,seed=3`"], "failed", "step 5 of 20")
    names(lines["- `loss=ipo,seed=0`"], "interrupted")
    names(lines["- `loss=cpo,seed=0`"], "incomplete")


def test_what_was_compared(report):
    facts = table(report, "What was compared")
    assert facts["data"][""] == "reviews"
    assert facts["model"][""] == "tiny"
    assert facts["seeds"][""] == "0, 1, 2"
    assert facts["optimiser steps"][""] == "20"
    names(facts["runs"][""], "9 of 12", "5 settings")
    assert facts["versions"][""] == "python 3.11.9, torch 2.13.0"
    assert facts["about the data"][""] == "train.pairs 1600, test.pairs 256"
    assert "| `cal_dpo` | `formula of cal_dpo` |" in report
    assert "optim.lr" not in report, "the settings differ in nothing but the loss"


def test_how_to_reproduce(report):
    assert "python -m caldpo.train -m loss=dpo,slic,cal_dpo seed=0,1,2\n" in report
    assert "python -m caldpo.train loss=slic seed=1 trainer.max_steps=20  # loss=slic,seed=1" in report


def test_every_definition_and_picture_of_the_report_is_there(sweep, report):
    for name in re.findall(r"\]\(([^)]+)\)", report):
        assert (sweep / name).stat().st_size > 1000 or name == "comparison.csv"
    for title in table(report, "Final figures on held-out pairs")["dpo"]:
        assert title in ("setting", "seeds") or f"- **{title.split(' (')[0]}**" in report


def test_pictures(sweep):
    png = (sweep / "reward_dynamics.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (900, 456), "15 x 7.6 inches at 60 dots"
    assert len(png) > 20_000
    svg = (sweep / "reward_dynamics.svg").read_text()
    assert svg.count("<path") > 50
    assert (sweep / "reward_kl.png").is_file()
    assert not (sweep / "loss_terms.png").exists(), "no loss logged two terms"


def test_the_command_from_another_folder_without_torch(sweep, tmp_path):
    """The whole command as a process; afterwards no training library is loaded, nothing lies where it ran."""
    program = (
        "import sys; sys.argv = ['compare', *sys.argv[1:]]\n"
        "from caldpo.compare import main\n"
        "main()\n"
        "heavy = {'torch', 'transformers', 'pytorch_lightning', 'wandb', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    target = sweep.relative_to(sweep.parent)
    (sweep / "report.md").unlink()
    done = subprocess.run(
        [sys.executable, "-c", program, str(target), "dpi=50"],
        cwd=sweep.parent,
        env={
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PATH": "/usr/bin:/bin",
            "COLUMNS": "120",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (sweep / "report.md").is_file()
    assert [path.name for path in sweep.parent.iterdir()] == ["sweep"]
    for name in ("report.html", "report.md", "reward_dynamics.png", "comparison.csv"):
        assert f"sweep/{name}" in done.stdout
    assert "-10.0 ±2.0" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if "loss=cal_dpo,seed=3" in line)
    names(line, "failed")


def test_the_help_explains_every_key():
    config = yaml.safe_load((conf_dir() / "compare.yaml").read_text())
    keys = set(config) - {"defaults", "hydra"}
    explained = re.findall(r"^  (\w+)  ", config["hydra"]["help"]["footer"], flags=re.MULTILINE)
    assert set(explained) == keys
