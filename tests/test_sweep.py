"""What the end of a sweep proposes."""

from __future__ import annotations

from pathlib import Path

import pytest

from caldpo.config.job import SUMMARY, write_json
from caldpo.sweep import report


def finished(folder: Path, dry: bool) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(f"seed: 0\ndry_run: {str(dry).lower()}\n")
    write_json(folder / SUMMARY, {"status": "finished"})


@pytest.mark.parametrize(("dry", "proposed"), [((True, True), False), ((True, False), True), ((False, False), True)])
def test_only_trained_runs_are_to_be_compared(
    dry: tuple[bool, bool], proposed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, this in enumerate(dry):
        finished(tmp_path / f"seed={number}", this)
    report(tmp_path)
    text = capsys.readouterr().out
    assert "2 of 2 runs finished" in text
    assert (f"python -m caldpo.compare {tmp_path}" in text) == proposed
