"""A suite of one's own: a class beside the project, named by a yaml in the folder that ``--config-dir`` names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.runs import TINY_RUN, evaluate, inside, result, value, write_data
from tests.messages import names

CODE = """
from dataclasses import dataclass

from caldpo.evaluation.suite_base import Measure, Result
from caldpo.evaluation.suite_base import Suite


@dataclass(frozen=True, kw_only=True)
class Longest(Suite):
    name = "longest"
    unit: int = 1

    def run(self, policy):
        longest = max(len(pair.chosen.split()) for pair in policy.texts)
        measure = Measure(value=longest / self.unit, title="longest", unit="words", meaning="Of the chosen responses.")
        return Result(measures={"words": measure}, examples=len(policy.pairs))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    (tmp_path / "longest_suite.py").write_text(CODE)
    (tmp_path / "own/suite").mkdir(parents=True)
    (tmp_path / "own/suite/longest.yaml").write_text("# @package longest\n_target_: longest_suite.Longest\nunit: 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_is_named_by_a_run_and_measures_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from caldpo.train import main

    command = [*TINY_RUN, "trainer.max_steps=1", "hydra.run.dir=run", "suites=[longest]"]
    with inside(home):
        with pytest.raises(SystemExit):
            main(command)
        names(capsys.readouterr().err, "error: suites=longest:")
        main([*command, "--config-dir", "own"])
        evaluate("run", "--config-dir", "own", "longest.unit=1")
    longest = max(len(json.loads(line)["chosen"].split()) for line in (home / "test.jsonl").read_text().splitlines())
    assert value(result(home / "run", "longest"), "words") == longest
