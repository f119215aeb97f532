"""Run folders are told from folders beside and inside them, and mistakes are answered with what exists."""

from __future__ import annotations

import os
from pathlib import Path

from caldpo.config.find_runs import find_one_run, find_runs, natural, no_folder_error
from tests.helpers.messages import names, refused
from tests.report.runs import held_out, write_run

ROWS = [held_out(0, 0, 0)]


def test_runs_at_any_depth_and_nothing_else(tmp_path):
    runs = [write_run(tmp_path / name, rows=ROWS) for name in ("a/seed=2", "a/seed=10", "b/c/seed=0")]
    # what training leaves beside and inside runs, and what looks half like a run
    (tmp_path / "multirun.yaml").write_text("hydra: {}")
    tracker = runs[0] / "wandb" / "offline-run-1" / "files"
    tracker.mkdir(parents=True)
    (tracker / "config.yaml").write_text("a: 1")
    (runs[0] / "policy").mkdir()
    (runs[0] / "policy" / "config.json").write_text("{}")
    (tmp_path / ".trash").mkdir()
    write_run(tmp_path / ".trash" / "old", rows=ROWS)
    assert find_runs(tmp_path) == runs


def test_a_single_run_is_found_at_the_folder_itself(tmp_path):
    run = write_run(tmp_path / "run", rows=ROWS)
    assert find_runs(run) == [run]


def test_one_run_is_wanted_where_several_lie(tmp_path):
    runs = [write_run(tmp_path / f"seed={seed}", rows=ROWS) for seed in range(2)]
    assert find_one_run(runs[1]) == runs[1]
    with refused("2 runs", key="run", value=tmp_path, remedy=runs[0]):
        find_one_run(tmp_path)


def test_a_run_that_failed_before_writing_anything_is_found(tmp_path):
    (tmp_path / "loss=dpo" / ".hydra").mkdir(parents=True)
    assert find_runs(tmp_path) == [tmp_path / "loss=dpo"]


def test_an_estimate_and_a_dry_run_are_no_runs(tmp_path):
    """The first leaves Hydra's folder and its figures, the second also a summary that says finished."""
    run = write_run(tmp_path / "run", rows=ROWS, config={"dry_run": False})
    estimate = write_run(tmp_path / "estimate", config={"dry_run": True}, status=None)
    dry = write_run(tmp_path / "dry", config={"dry_run": True}, status="finished")
    for folder in (estimate, dry):
        (folder / "config.yaml").unlink()
        (folder / "estimate.json").write_text("{}")
    assert find_runs(tmp_path) == [run]
    with refused(key="sweep", value=dry):
        find_runs(dry)


def test_a_folder_that_was_estimated_again_is_still_a_run(tmp_path):
    run = write_run(tmp_path / "run", rows=ROWS, config={"dry_run": True})
    assert find_runs(tmp_path) == [run]


def test_a_copy_without_hidden_folders_is_found(tmp_path):
    run = write_run(tmp_path / "run", rows=ROWS, hydra=False)
    assert find_runs(tmp_path) == [run]


def test_missing_folder_names_what_exists(tmp_path, monkeypatch):
    write_run(tmp_path / "outputs" / "sweep_one" / "seed=0", rows=ROWS)
    (tmp_path / "outputs" / "cache" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    missing = tmp_path / "outputs" / "sweep_onw"
    with refused("did you mean sweep_one?", key="sweep", value=missing, remedy="outputs/sweep_one") as error:
        find_runs(missing)
    assert "cache" not in str(error.value)
    # a sweep's name alone is answered with where it lies
    with refused(key="sweep", value=tmp_path / "sweep_one", remedy="outputs/sweep_one"):
        find_runs(tmp_path / "sweep_one")


def test_nothing_trained_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(key="sweep", value=tmp_path / "outputs" / "demo", remedy="python -m caldpo.train"):
        find_runs(tmp_path / "outputs" / "demo")
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    with refused(key="sweep", value=tmp_path / "outputs" / "demo"):
        find_runs(tmp_path / "outputs" / "demo")


def test_numbers_sort_by_value():
    assert sorted(["seed=10", "seed=9", "beta=0.1"], key=natural) == ["beta=0.1", "seed=9", "seed=10"]


def test_no_folder_is_answered_with_the_newest_five(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names(no_folder_error(), key="sweep", remedy="python -m caldpo.compare outputs/SWEEP")
    assert "newest" not in str(no_folder_error()), "there is nothing to list"
    for age, name in enumerate("abcdefg"):
        write_run(tmp_path / "outputs" / name / "seed=0", rows=ROWS)
        os.utime(tmp_path / "outputs" / name, (1000 - age, 1000 - age))
    (tmp_path / "outputs" / "cache").mkdir()
    newest = ", ".join(f"outputs/{name}" for name in "abcde")
    names(no_folder_error(), remedy=("python -m caldpo.compare outputs/SWEEP", newest, "2 more"))


def test_what_exists_is_listed_newest_first_and_bounded(tmp_path, monkeypatch):
    """Wherever it lies: beside the folder that was named, or in outputs."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate("cafebdgihj"):
        folder = tmp_path / ("outputs" if age % 2 else "elsewhere") / name
        write_run(folder / "seed=0", rows=ROWS)
        os.utime(folder, (1000 - age // 2, 1000 - age // 2))
    places = ["elsewhere/c", "outputs/a", "elsewhere/f", "outputs/e", "elsewhere/b", "outputs/d", "elsewhere/g"]
    listed = ", ".join([*places, "outputs/i"])
    with refused("no such folder", key="sweep", value="elsewhere/nosuch", remedy=("newest first", listed, "2 more")):
        find_runs(Path("elsewhere/nosuch"))
