"""Whatever a result depends on: when any of it is another, it is measured anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluation.runs import QUICK, evaluate, inside, runs


def rescored(sweep: Path, home: Path) -> None:
    """Other true rewards of the same responses."""
    rows = [json.loads(line) for line in (home / "test.jsonl").read_text().splitlines()]
    scaled = [row | {"score_chosen": 50 * row["score_chosen"]} for row in rows]
    (home / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scaled))


def other_texts(sweep: Path, home: Path) -> None:
    (home / "texts.txt").write_text("w30 w31 w32 w33\n")


def other_reference(sweep: Path, home: Path) -> None:
    shutil.copy(runs(sweep)[2] / "policy" / "model.safetensors", home / "reference" / "model.safetensors")


def other_model(sweep: Path, home: Path) -> None:
    shutil.copy(runs(sweep)[2] / "policy" / "model.safetensors", home / "model" / "model.safetensors")


@pytest.mark.parametrize("change", [rescored, other_texts, other_reference, other_model])
def test_whatever_a_result_depends_on_is_noticed(
    change: Callable[[Path, Path], None], sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores that are in no token, and files whose paths stay what they are."""
    shutil.copytree(sweep.parent / "tokenizer", tmp_path / "tokenizer")
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(sweep.parent / name, tmp_path / name)
    for name in ("model", "reference"):
        shutil.copytree(runs(sweep)[0] / "policy", tmp_path / name)
    (tmp_path / "texts.txt").write_text("w1 w2 w3\n")
    arguments = (
        "model.path=model",
        "reference.path=reference",
        "data=local",
        "data.train=train.jsonl",
        "data.test=test.jsonl",
        "suite=[preference,displacement]",
        "displacement.unrelated=texts.txt",
        "output=results",
        *QUICK,
    )
    with inside(tmp_path):
        evaluate(*arguments)
        evaluate(*arguments)
        assert capsys.readouterr().out.count("overwrite=true") == 2
        change(sweep, tmp_path)
        evaluate(*arguments)
    again = {rescored: 0, other_texts: 1}.get(change, 0)  # texts concern displacement alone
    assert capsys.readouterr().out.count("overwrite=true") == again
