"""What a run writes stays in its folder, whatever names and links say."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from caldpo.config.run_lifecycle import early_ends
from caldpo.config.run_lock import EVALUATION, GENERATION, RUN, is_held, run_lock
from caldpo.security.paths import (
    require_no_links_out,
    require_no_links_out_of_sweep,
    require_unlinked,
    stays_inside,
)
from caldpo.sweep_report import SweepReport
from tests.evaluation.runs import evaluate, inside
from tests.helpers.command import call, train
from tests.helpers.messages import names, refused


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
    target = outside / "precious" if link.endswith(".log") else outside
    names(capsys.readouterr().err, f"{run / link}:", target)
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
    with refused(key=run / "metrics.csv", remedy="link") as error:
        require_unlinked(run, "metrics.csv")
    names(error, tmp_path / "not-there-yet")


FILES = [
    *("metrics.csv", "samples.jsonl", "summary.json", "config.yaml", "error.txt", "error.rank1.txt", "output.txt"),
    *(
        "train.log",
        "rejected_rows.jsonl",
        ".run.lock",
        ".run.owner.json",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
    ),
    *("checkpoints/step-4/manifest.json", "nonfinite_batches/step-2.pt", "a name of next year", "deep/er/still/x"),
    *("wandb/run-1/logs/debug.log", "wandb/settings", "policy/model.safetensors", "deep/wandb/debug.log"),
]
FOLDERS = [
    *(
        ".hydra",
        "wandb",
        "policy",
        "checkpoints",
        "checkpoints/step-4",
        "nonfinite_batches",
        "evaluation",
        "wandb/run-1",
    ),
    "wandb/run-1/files",
]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_no_link_leads_out_of_a_run(name: str, there: bool, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    link = run / name
    link.parent.mkdir(parents=True)
    require_no_links_out(run)
    if there and name in FOLDERS:
        outside.mkdir()
    elif there:
        outside.write_text("precious")
    link.symlink_to(outside)
    for folder in (run, run / ".." / "run"):
        with refused(outside, key=folder / name, remedy="link"):
            require_no_links_out(folder)


def test_a_link_by_way_of_another_leads_out_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "a").mkdir(parents=True)
    (run / "metrics.csv").symlink_to("a/first")
    (run / "a" / "back").symlink_to("..")  # in a circle, but inside: it is not followed
    (run / "round").symlink_to("round")
    require_no_links_out(run)
    (run / "up").symlink_to("a/../../run/a")
    require_no_links_out(run)
    (run / "a" / "first").symlink_to("../../outside")
    with refused(tmp_path / "outside", key=run / "metrics.csv", remedy="link"):
        require_no_links_out(run)


def test_what_wandb_makes_anew_may_have_led_to_where_the_run_was(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "wandb").mkdir(parents=True)
    for name in ("debug.log", "debug-internal.log", "latest-run"):
        (run / "wandb" / name).symlink_to(tmp_path / "old-place" / name)
    require_no_links_out(run)
    (run / "debug.log").symlink_to(tmp_path / "old-place" / "debug.log")
    with refused(tmp_path / "old-place" / "debug.log", key=run / "debug.log", remedy="link"):
        require_no_links_out(run)


@pytest.mark.parametrize("folder", ["offline-run-20260101_000000-abc", "run-20260101_000000-abc"])
def test_wandb_links_its_own_log_into_the_runs_that_it_began(folder: str, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    for parent in (run / "wandb", run / "wandb" / "replaced"):
        logs = parent / folder / "logs"
        logs.mkdir(parents=True)
        (logs / "debug-core.log").symlink_to(cache / "core-debug.log")
    require_no_links_out(run)
    (run / "wandb" / folder / "logs" / "other.log").symlink_to(cache / "core-debug.log")
    with refused(cache / "core-debug.log", key=run / "wandb" / folder / "logs" / "other.log", remedy="link"):
        require_no_links_out(run)


def test_a_run_that_a_person_linked_or_has_not_begun(tmp_path: Path) -> None:
    require_no_links_out(tmp_path / "not" / "there")
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "real" / "inside").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "named").symlink_to("real")
    require_no_links_out(tmp_path / "named")


@pytest.mark.parametrize(
    "name", ["multirun.yaml", "sweep.json", ".submitit", ".submitit/1/1_log.out", "loss=dpo,seed=0"]
)
def test_links_out_of_a_sweep(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused with the command line; other things in a sweep's folder are none of our business."""
    sweep, outside = tmp_path / "sweep", tmp_path / "outside"
    outside.mkdir()
    (sweep / ".venv" / "bin").mkdir(parents=True)
    (sweep / ".venv" / "bin" / "python").symlink_to("/usr/bin/python3")
    require_no_links_out_of_sweep(sweep)
    (sweep / name).parent.mkdir(parents=True, exist_ok=True)
    (sweep / name).symlink_to(outside / "x" if "." in name else outside)
    with inside(tmp_path):
        train("-m", "loss=dpo", "seed=0,1", "hydra.sweep.dir=sweep", "resume=auto", fails=2)
    names(capsys.readouterr().err, f"error: sweep/{name}:", outside / "x" if "." in name else outside)
    assert [*outside.iterdir()] == []


def test_links_where_the_runs_of_a_sweep_lie_deeper(tmp_path: Path) -> None:
    (tmp_path / "sweep" / "dpo").mkdir(parents=True)
    (tmp_path / "sweep" / "dpo" / "seed=0").symlink_to(tmp_path)
    require_no_links_out_of_sweep(tmp_path / "sweep", 1)
    with refused(tmp_path, key=tmp_path / "sweep" / "dpo" / "seed=0", remedy="link"):
        require_no_links_out_of_sweep(tmp_path / "sweep", 2)


@pytest.mark.parametrize("what", [RUN, EVALUATION, GENERATION])
@pytest.mark.parametrize("there", [True, False])
def test_a_lock_is_not_taken_through_a_link(what: str, there: bool, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    if there:
        outside.write_text("precious")
    (run / f".{what}.lock").symlink_to(outside)
    assert not is_held(run, what)
    with refused("lock", os.strerror(errno.ELOOP), key="folder", value=run), run_lock(run, what):
        pass
    assert outside.exists() is there
    assert not there or outside.read_text() == "precious"


@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm"])
def test_the_folder_of_jobs_is_ones_own(launcher: str, tmp_path: Path) -> None:
    """Also where an earlier command has made it for everybody."""
    jobs = tmp_path / "sweep" / ".submitit"
    jobs.mkdir(parents=True, mode=0o755)
    kind = launcher.removeprefix("submitit_").capitalize()
    target = f"hydra_plugins.hydra_submitit_launcher.submitit_launcher.{kind}Launcher"
    hydra = {
        "launcher": {"_target_": target},
        "sweeper": {"_target_": "x.Other"},
        "sweep": {"dir": str(tmp_path / "sweep")},
    }
    SweepReport().on_multirun_start(OmegaConf.create({"hydra": hydra}))
    early_ends.clear()
    assert jobs.stat().st_mode & 0o777 == 0o700
