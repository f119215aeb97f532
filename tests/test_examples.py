"""The notebooks of docs/examples, and the examples of docs/python_api.md, run as a reader runs them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from tests.helpers.documents import ROOT, blocks
from tests.helpers.quick_sft import write_quick_sft

NOTEBOOKS = sorted((ROOT / "docs/examples").glob("*.ipynb"))

pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="an installed wheel has no pages")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_with_a_cell_of_parameters(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [
        "STEPS" in "".join(cell["source"]) for cell in code if "parameters" in cell["metadata"].get("tags", ())
    ] == [True]


def executed(path: Path, folder: Path, steps: int) -> list[str]:
    """Run a notebook in an empty folder, in runs of so many steps; return the text that each cell put out."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel, of the [dev] extra")
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = re.sub(r"STEPS = \d+", f"STEPS = {steps}", parameters.source)
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return ["".join(_text(output) for output in cell.get("outputs", ())) for cell in book.cells]


def _text(output: Any) -> str:
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


@pytest.mark.slow
def test_compare_five_losses(elsewhere: Path) -> None:
    write_quick_sft(elsewhere)
    shown = executed(ROOT / "docs/examples/compare_five_losses.ipynb", elsewhere, steps=2)
    folders = sorted(path.parent for path in Path("outputs/five_losses").glob("*/summary.json"))
    assert [folder.name for folder in folders] == ["cal_dpo", "cpo", "dpo", "ipo", "slic"]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert {(summary["status"], summary["steps"]) for summary in summaries} == {("finished", 2)}
    final = [f"{summary['metrics']['val/log_ratios/chosen']:.2f}" for summary in summaries]
    assert any("win rate" in text and all(value in text for value in final) for text in shown)
    compared = pd.read_csv("outputs/five_losses/comparison.csv")
    assert sorted(compared["loss"]) == [folder.name for folder in folders]


@pytest.mark.slow
def test_bring_your_own(elsewhere: Path) -> None:
    shown = executed(ROOT / "docs/examples/bring_your_own.ipynb", elsewhere, steps=4)
    summaries = [json.loads(path.read_text()) for path in Path("outputs").glob("train_*/summary.json")]
    assert sorted(summary["loss_name"] for summary in summaries) == ["dpo", "hinge_loss"]
    assert {(summary["status"], summary["steps"]) for summary in summaries} == {("finished", 4)}
    for summary in summaries:
        pairs = summary["data"]["train"]["pairs"] + summary["data"]["test"]["pairs"]
        assert pairs == 120, "six things, twenty questions of each"
        assert any(f"{summary['loss_name']} | what colour is lemon" in text for text in shown)


@pytest.mark.slow
def test_the_examples_of_the_python_page_run(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One after another, in one program; each call's own tests look at its numbers."""
    mpl.use("Agg")
    write_quick_sft(elsewhere)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(ROOT / "docs/python_api.md", "python")):
        exec(compile(block, f"python_api.md, block {number}", "exec"), names)
    assert "calibration" in capsys.readouterr().out
    run, own, frame = names["run"], names["own"], names["frame"]
    assert (run.summary["steps"], run.summary["loss_name"]) == (20, "cal_dpo")
    assert (own.summary["steps"], own.summary["loss_name"]) == (4, "dpo")
    assert len(frame) == len(names["pairs"]) == 15
    assert names["module"].global_step == 4
    calls = re.findall(r"^\| .*?`(caldpo\.\w+)`", (ROOT / "docs/python_api.md").read_text(), re.M)
    used = "".join(blocks(ROOT / "docs/python_api.md", "python"))
    assert len(calls) == 7
    assert all(f"{call}(" in used for call in calls)
