"""What an evaluation measures where its command line names no suite: what its runs were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from caldpo.evaluation.default_suites import with_default_suites
from tests.helpers.messages import names


def run_folder(path: Path, **config: Any) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"name": "x"} | config))
    (path / "summary.json").write_text("{}")
    (path / "metrics.csv").write_text("step\n")
    return path


def added(*overrides: str) -> list[str]:
    return with_default_suites(overrides, False)[len(overrides) :]


def test_the_suites_of_the_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", suites=["preference", "leaderboard"])
    assert added(f"run={run}", "seed=1") == ["suite=[preference,leaderboard]"]
    assert added(f"run='{run}'") == ["suite=[preference,leaderboard]"]


def test_of_a_sweep_all_that_any_run_names(tmp_path: Path) -> None:
    run_folder(tmp_path / "sweep/loss=dpo", suites=["preference"])
    run_folder(tmp_path / "sweep/loss=sft", suites=["oracle", "preference"])
    assert added(f"run={tmp_path / 'sweep'}") == ["suite=[preference,oracle]"]


@pytest.mark.parametrize("named", ["suite=oracle", "suite=[judge]", "+suite=oracle", "~suite", "suite@x=oracle"])
def test_the_command_line_wins(named: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", suites=["preference"])
    assert added(f"run={run}", named) == []


@pytest.mark.parametrize("suites", [None, [], "preference", {"a": 1}, ["rm -rf"], [["preference"]]])
def test_what_names_no_suite_leaves_the_default(suites: Any, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", **({} if suites is None else {"suites": suites}))
    assert added(f"run={run}") == []


def test_only_names_are_taken_from_a_folder(tmp_path: Path) -> None:
    """A run of another hand cannot add keys of its own."""
    run = run_folder(
        tmp_path / "run", suites=["preference", "oracle] allow_untrusted_code=true", "leaderboard.python=x"]
    )
    assert added(f"run={run}") == ["suite=[preference]"]


def test_of_ones_own_where_its_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf/suite").mkdir(parents=True)
    (tmp_path / "conf/suite/own.yaml").write_text("# @package own\n_target_: my.Own\n")
    run = run_folder(tmp_path / "run", suites=["preference", "own"])
    overrides = with_default_suites([f"run={run}"], False, str(tmp_path / "conf"))
    assert overrides[1:] == ["suite=[preference,own]"]
    assert added(f"run={run}") == ["suite=[preference]"]
    names(capsys.readouterr().err, "own", remedy="--config-dir=FOLDER")


def test_a_judge_has_to_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", suites=["displacement", "judge"])
    assert added(f"run={run}") == ["suite=[displacement]"]
    names(capsys.readouterr().err, "judge", remedy=("judge.base_url=URL", "judge.model=NAME"))
    assert added(f"run={run}", "judge.mock=true") == ["suite=[displacement,judge]"]
    assert capsys.readouterr().err == ""


def test_without_a_run_nothing_changes(tmp_path: Path) -> None:
    assert added("model.path=gpt2") == []
    assert added(f"run={tmp_path / 'nowhere'}") == []
