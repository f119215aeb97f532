"""``docs/results.py`` writes README's table from a study's tables."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.messages import names

SCRIPT = Path(__file__).parents[2] / "docs" / "results.py"

MEANS = """row,kind,choice,seeds,reward,reward_low,reward_high,reward_at_kl,win_rate,kl,chosen_log_ratio
dpo,loss,practitioner,5,0.5,0.4,0.6,0.2,0.8,2.0,-3.0
dpo,loss,truth,5,9,9,9,0.2,9,9,9
ipo,loss,practitioner,5,0.9,0.8,1.0,0.2,0.9,1.0,0.5
cpo,loss,practitioner,3,0.6,0.4,0.8,0.2,0.85,,1.5
exo,loss,practitioner,5,0.3,0.2,0.4,0.2,0.7,3.0,-4.0
nca,loss,practitioner,5,0.95,0.9,1.0,0.2,0.9,1.2,0.1
reference,beside,practitioner,5,-0.4,-0.5,-0.3,0.2,0.5,0.0,0.0
"""
DIFFERENCES = """condition,choice,row,measure,difference,significant
reviews,practitioner,ipo,reward,0.4,True
reviews,practitioner,cpo,reward,0.1,False
reviews,practitioner,cpo,win_rate,0.05,True
reviews,truth,cpo,reward,0.7,True
"""


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study").mkdir()
    written = {"reviews": MEANS, "differences": DIFFERENCES, "runs": "condition,row\nreviews,dpo\n"}
    # another page's table stands in docs/study, too
    for name, text in {**written, "trials": "row\n", "cal_dpo_map": "beta,reward\n0.1,1\n"}.items():
        (tmp_path / "study" / f"{name}.csv").write_text(text)
    return tmp_path / "study"


def test_the_table_stands_between_the_markers_and_is_replaced(study: Path, script: dict[str, Any]) -> None:
    readme = study.parent / "README.md"
    readme.write_text(f"before\n\n{script['BEGIN']}\na line of before\n{script['END']}\n\nafter\n")
    assert script["main"]([str(study)], readme) == 0
    once = readme.read_text()
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "a line of before" not in once
    assert script["main"]([str(study)], readme) == 0
    assert readme.read_text() == once
    rows = [line for line in once.splitlines() if line.startswith("| `")]
    shown = ["nca", "ipo", "cpo", "dpo", "reference"]
    assert [row.split("`")[1] for row in rows] == shown, "the named, the highest and those beside, by true reward"
    assert "**+0.40**" in rows[1]
    assert "(+0.10)" in rows[2], "what is not significant is not called a difference"
    assert "0.50 (0.40 to 0.60)" in rows[3]
    names(once, "1 of 2 rows", "`cpo` (3)", "1 more rows")


def test_without_dpo_nothing_is_said_of_it(study: Path, script: dict[str, Any]) -> None:
    (study / "differences.csv").write_text("\n")
    assert "told apart" not in script["results"](study)


def test_nothing_is_written_without_markers_or_without_a_study(
    study: Path, script: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    readme = study.parent / "README.md"
    readme.write_text("no place\n")
    assert script["main"]([str(study)], readme) == 1
    names(capsys.readouterr().out, script["BEGIN"], script["END"])
    marked = f"{script['BEGIN']}\n{script['END']}\n"
    readme.write_text(marked)
    assert script["main"]([str(study.parent / "none")], readme) == 1
    names(capsys.readouterr().out, "caldpo.study")
    assert readme.read_text() == marked
