"""The best checkpoint by a watched metric: which it is, that it is kept, and that commands take it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caldpo.checkpointing.best_checkpoint import better_mode, find_best
from caldpo.checkpointing.checkpoint_callback import Checkpoints
from caldpo.checkpointing.manifest import checkpoint_folders
from tests.evaluation.runs import evaluate, inside, result, write_data
from tests.helpers.command import call, train
from tests.helpers.messages import names, refused
from tests.resume.runs import outcome
from tests.resume.stopped import RUN, stopped

REJECTED = "val/log_ratios/rejected"  # which falls in these runs, so that its largest value is not the last
WATCHED = (f"callbacks.checkpoint.monitor={REJECTED}", "callbacks.checkpoint.mode=max", "callbacks.checkpoint.keep=1")


def written(run: Path, values: dict[int, float], saved: tuple[int, ...], name: str = "val/loss") -> Path:
    """A run with a metric at some steps, and checkpoints of some."""
    rows = [f"{step},{value}\n{step},\n" for step, value in values.items()]
    run.mkdir(exist_ok=True)
    (run / "metrics.csv").write_text(f"step,{name}\n{''.join(rows)}")
    for step in saved:
        (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
    return run


@pytest.mark.parametrize(
    ("values", "saved", "mode", "best", "elsewhere"),
    [
        ({2: 3.0, 4: 1.0, 6: 2.0}, (4, 6), "auto", 4, None),
        ({2: 3.0, 4: 1.0, 6: 2.0}, (4, 6), "max", 6, 2),  # that of step 2 was not kept
        ({2: 1.0, 4: 1.0, 6: 1.0}, (2, 4, 6), "min", 2, None),  # of equal ones the first
        ({0: 0.5, 2: 1.0, 4: 0.9}, (2, 4), "min", 4, 0),  # training made it worse, which is said
        ({2: float("nan"), 4: 2.0}, (2, 4), "min", 4, None),
    ],
)
def test_which_it_is(
    values: dict[int, float], saved: tuple[int, ...], mode: str, best: int, elsewhere: int | None, tmp_path: Path
) -> None:
    found = find_best(written(tmp_path / "run", values, saved), {"monitor": "val/loss", "mode": mode})
    assert (found.step, found.value, found.folder.name) == (best, values[best], f"step-{best}")
    assert (found.note is None) is (elsewhere is None)
    if elsewhere is not None:
        names(found.note, f"at step {elsewhere}", f"{values[elsewhere]:g}", f"of step {best}")


def test_where_there_is_none_it_is_refused(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {2: 1.0}, (3,))
    for section in (None, {}, {"monitor": None}):
        with refused(key="checkpoint", value="best", remedy="callbacks.checkpoint.monitor"):
            find_best(run, section)
    with refused("val/loss", key="checkpoint", value="best", remedy="checkpoint=last"):
        find_best(run, {"monitor": "val/loss", "mode": "auto"})


def test_the_direction_is_that_of_the_definition() -> None:
    assert better_mode("val/rewards/accuracies") == "max"
    assert better_mode("val/loss") == better_mode("val/displacement") == better_mode("val/terms/nll") == "min"
    assert better_mode(REJECTED) is better_mode("mine") is None
    assert Checkpoints(monitor="val/rewards/accuracies").mode == "max"
    with refused(key="mode", value="auto", remedy=("min", "max")):
        Checkpoints(monitor=REJECTED)


def measured(run: Path) -> dict[int, float]:
    """The watched metric by step, after training began."""
    with (run / "metrics.csv").open(newline="") as file:
        found = {int(row["step"]): float(row[REJECTED]) for row in csv.DictReader(file) if row[REJECTED]}
    return {step: value for step, value in found.items() if step > 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``all`` keeps a checkpoint of every step and watches nothing; ``best`` is the same run, watched."""
    folder = tmp_path_factory.mktemp("best")
    write_data(folder, 32)
    with inside(folder):
        train(*RUN, "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=all", "hydra.run.dir=all")
        train(*RUN, *WATCHED, "hydra.run.dir=best")
    return folder


def test_it_is_kept_beside_the_last_ones(home: Path) -> None:
    values = measured(home / "all")
    best = max(values, key=lambda step: values[step])
    assert best < 8, "the last one would be kept anyway"
    assert list(checkpoint_folders(home / "best")) == [best, 8]
    ours, same = (load_file(home / run / f"checkpoints/step-{best}/weights.safetensors") for run in ("best", "all"))
    assert all(torch.equal(ours[name], same[name]) for name in same)
    found = json.loads((home / "best/summary.json").read_text())["best_checkpoint"]
    assert (found["step"], found["value"], found["metric"]) == (best, values[best], REJECTED)


def test_a_run_that_was_stopped_keeps_the_same_one(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("best", "all"))
    with inside(tmp_path / "copy"):
        for after in (5, 9):  # micro-batches: in step 3 and step 5
            stopped(*RUN, *WATCHED, f"hydra.run.dir=half{after}", after=after)
            train(f"resume=half{after}")
            whole, found = outcome(home / "best"), outcome(Path(f"half{after}"))
            assert [name for name in whole if found[name] != whole[name]] == []
            assert [*checkpoint_folders(Path(f"half{after}"))] == [*checkpoint_folders(home / "best")]


def test_commands_take_it(home: Path) -> None:
    from caldpo.export import main as export
    from caldpo.generate import main as generate

    best = next(iter(checkpoint_folders(home / "best")))
    with inside(home):
        call(export, ["best", "checkpoint=best", "to=exported", "picture=false"], None)
        exported = load_file("exported/model.safetensors")
        kept = load_file(f"best/checkpoints/step-{best}/weights.safetensors")
        assert all(torch.equal(exported[name], kept[f"policy.{name}"]) for name in exported)
        evaluate("best", "checkpoint=best", "suite=preference", "preference.resamples=10")
        assert result(Path("best"), "preference")["determined_by"]["step"] == best
        call(generate, ["best", "checkpoint=best", "count=1", "max_new_tokens=2"], None)
        call(export, ["all", "checkpoint=best", "to=other"], 1)


def test_early_stopping(home: Path, tmp_path: Path) -> None:
    """Two evaluations that are not better end the run; stopped in between and resumed, it is the same run."""
    values, best, worse, end = measured(home / "all"), None, 0, 8
    for step in sorted(values):
        worse = 0 if best is None or values[step] > values[best] else worse + 1
        best = step if worse == 0 else best
        if worse == 2:
            end = step
            break
    assert end < 8
    shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("best", "all"))
    early = ("callbacks=early_stopping", f"callbacks.early_stopping.monitor={REJECTED}")
    early += ("callbacks.early_stopping.mode=max", "callbacks.early_stopping.patience=2")
    with inside(tmp_path / "copy"):
        train(*RUN, *early, "hydra.run.dir=whole")
        stopped(*RUN, *early, "hydra.run.dir=half", after=5)
        train("resume=half")
        whole, half = outcome(Path("whole")), outcome(Path("half"))
        assert [name for name in whole if half[name] != whole[name]] == []
        summary = json.loads(Path("whole/summary.json").read_text())
        assert (summary["status"], summary["steps"], summary["stopped_early"]) == ("finished", end, True)
        assert best in checkpoint_folders(Path("whole"))
        assert end in checkpoint_folders(Path("whole")), "that of the end too"
        policy = load_file("whole/policy/model.safetensors")
        same = load_file(home / f"all/checkpoints/step-{end}/weights.safetensors")
        assert all(torch.equal(policy[name], same[f"policy.{name}"]) for name in policy)
