"""``docs/chosen_reward.py`` writes the figures of the guide to falling chosen rewards from the study's tables."""

from __future__ import annotations

import csv
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "chosen_reward.py"))


def test_the_table_is_that_of_the_study() -> None:
    page = (DOCS / "chosen_reward.md").read_text(encoding="utf-8")
    shown = page[page.index(SCRIPT["BEGIN"]) + len(SCRIPT["BEGIN"]) : page.index(SCRIPT["END"])].strip()
    assert shown == SCRIPT["table"](), "python docs/chosen_reward.py writes it anew"
    means = {}
    for condition in ("reviews", "arithmetic"):
        with (DOCS / "study" / f"{condition}.csv").open(encoding="utf-8", newline="") as file:
            means[condition] = {row["row"]: row for row in csv.DictReader(file) if row["choice"] == "practitioner"}
    rows = re.findall(r"^\|[^|]*\| `(\w+)` \|(.+)\|$", shown, re.MULTILINE)
    assert {"dpo", "cal_dpo", "sft"} <= {name for name, _ in rows}
    for name, cells in rows:
        found = [means[c][name][key] for c in means for key in ("chosen_log_ratio", "rejected_log_ratio", "reward")]
        assert [float(cell) for cell in cells.split("|")] == [round(float(value), 2) for value in found]


def test_correlations_that_the_page_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    SCRIPT["print_figures"]()
    printed = capsys.readouterr().out.splitlines()
    page = (DOCS / "chosen_reward.md").read_text(encoding="utf-8")
    for figure, measure in {
        "-0.64": "reviews: true reward with chosen",
        "+0.90": "chosen",
        "-0.99": "displaced",
    }.items():
        assert figure in page
        assert any(figure in line for line in printed if measure in line)
