"""What a run writes stays in its folder, whatever names and links say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from caldpo.config.inside import require_unlinked, stays_inside
from caldpo.errors import CaldpoError
from tests.command import call, train
from tests.evaluation.runs import evaluate, inside


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc", "..", "a\\..\\x", "x\0y", "a/..", "//x", "./../x", "a/b/../../.."]
)
def test_names_that_lead_out(name: str) -> None:
    assert not stays_inside(name)


@pytest.mark.parametrize("name", ["x", "a/b", "loss=dpo,seed=0", "..x", "x..", ".hydra", "a/..b"])
def test_names_that_stay(name: str) -> None:
    assert stays_inside(name)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["name=../escaped"], "name="),
        (["name=a/b"], "name="),
        (["name=.."], "name="),
        (["name=~"], "name="),
        (["name=/tmp"], "name="),
        (["-m", "seed=0,1", "name=../escaped"], "name="),
        (["-m", "seed=0,1", "hydra.sweep.subdir=../escaped"], "hydra.sweep.subdir="),
        (["-m", "seed=0,1", "hydra.sweep.subdir='/tmp/escaped-${seed}'"], "hydra.sweep.subdir="),
        (["-m", "seed=0,1", "hydra.sweep.subdir='${oc.env:ESCAPE}/x'"], "hydra.sweep.subdir="),
        (["hydra.output_subdir=../../escaped"], "hydra.output_subdir="),
        (["hydra.job.name=../../escaped"], "hydra.job.name="),
        (["loss=../model/tiny"], "loss"),
        (["loss=../../../escaped"], "loss"),
    ],
)
def test_names_on_the_command_line(
    arguments: list[str],
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ESCAPE", "/tmp/escaped")
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    with inside(place):
        train(*arguments, fails=2)
    assert key in capsys.readouterr().err
    assert [*tmp_path.rglob("*escaped*")] == []
    assert [*place.iterdir()] == []


def test_a_runs_name_in_a_sweep_has_no_path_of_its_overrides(tmp_path: Path) -> None:
    with inside(tmp_path):
        train(
            *("-m", "seed=0", "data.train=../../../escaped.jsonl", "data=local", "model=random", "model.tokenizer=.."),
            "hydra.sweep.dir=sweep",
            fails=2,
        )
    assert not [*tmp_path.rglob("*escaped*")]


@pytest.mark.parametrize("link", ["evaluation", "evaluation/other-data", "evaluation/leaderboard.log"])
def test_links_out_of_a_run_are_not_written_through(
    link: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from caldpo.generate import main as generate

    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("evaluation"))
    outside.mkdir()
    (outside / "precious").write_text("kept")
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(outside / "precious" if link.endswith(".log") else outside)
    with inside(trained.parent):
        evaluate(str(run), "suite=preference", fails=1)
        call(generate, [str(run), "count=1", "max_new_tokens=2"], 1)
    assert "outside the folder, where writing would change what is there" in capsys.readouterr().err
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "kept"


def test_links_within_and_to_the_run_are_none_of_our_business(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    (run / "wandb" / "debug.log").symlink_to(run / "wandb" / "run-1" / "debug.log")  # need not be there
    (tmp_path / "link").symlink_to(run)
    for folder in (run, tmp_path / "link"):
        require_unlinked(folder, "wandb", "evaluation")


def test_a_link_to_nothing_outside_is_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").symlink_to(tmp_path / "not-there-yet")
    with pytest.raises(CaldpoError, match=r"metrics\.csv: is a link to"):
        require_unlinked(run, "metrics.csv")
