"""A finished run that is made longer is the run that was as long from its beginning, or says what its schedule does."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest

from caldpo.optim.optimizer_base import Schedule
from caldpo.resume.config_diff import new_run_remedy
from caldpo.resume.extended_run import Extension
from tests.evaluation.runs import inside, write_data
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.runs import outcome
from tests.resume.stopped import RUN, contents, refused, stopped

CONSTANT = ("optim.schedule.decay=constant", "optim.schedule.warmup_steps=2")
BY_EPOCHS = ("trainer.max_steps=null", "trainer.max_epochs=1")


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (("trainer.max_steps=5",), "trainer.max_steps=8"),
        (BY_EPOCHS, "trainer.max_epochs=2"),
        (("trainer.max_steps=null", "trainer.max_epochs=0.5"), "trainer.max_epochs=1.75"),
    ],
)
@pytest.mark.parametrize("auto", [False, True])
def test_it_is_the_run_that_was_as_long_from_its_beginning(
    first: tuple[str, ...], more: str, auto: bool, tmp_path: Path
) -> None:
    write_data(tmp_path, 32)
    with inside(tmp_path):
        train(*RUN, *CONSTANT, *first, more, "hydra.run.dir=whole")
        train(*RUN, *CONSTANT, *first, "hydra.run.dir=short")
        again = (*RUN, *CONSTANT, *first, "hydra.run.dir=short", "resume=auto") if auto else ("resume=short",)
        train(*again, more)
        whole, found = outcome(Path("whole")), outcome(Path("short"))
        assert [name for name in whole if found[name] != whole[name]] == []
        assert json.loads(Path("short/summary.json").read_text())["stretches"] == 2
        kept = contents(Path("short"))
        train(*again, more, fails=None if auto else 2)
        assert contents(Path("short")) == kept, "it has finished again"


def rate(step: int, total: int, warmup: int) -> float:
    """The cosine schedule, written once more: the share of the learning rate that the update after ``step`` has."""
    return step / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def updates(run: Path) -> dict[int, float]:
    """The logged learning rate by the step that it was of."""
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["lr"]) for row in csv.DictReader(file) if row["lr"]}


def test_with_a_schedule_it_is_exact_up_to_the_old_end_and_says_what_changed_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, 32)
    cosine = ("optim.schedule.decay=cosine", "optim.schedule.warmup_steps=2", "callbacks.checkpoint.keep=all")
    with inside(tmp_path):
        train(*RUN, *cosine, "trainer.max_steps=6", "hydra.run.dir=short")
        short = outcome(Path("short"))
        capsys.readouterr()
        train("resume=short", "trainer.max_steps=10")
        said = capsys.readouterr().out
        longer = outcome(Path("short"))

        def until_the_end(rows: list[dict[str, str]]) -> list[dict[str, str]]:
            """The rows in the order of the file; that of the update after step 6 is the first of the longer run."""
            rows = [row for row in rows if int(row["step"]) < 6 or (row["step"] == "6" and not row["lr"])]
            return [{name: value for name, value in row.items() if value} for row in rows]

        assert until_the_end(longer["rows"]) == until_the_end(short["rows"])
        assert longer["steps"] == 10
        # the rates of 6 steps of the short schedule, then those of the long one
        expected = {step: 0.01 * rate(step, 6 if step < 6 else 10, 2) for step in range(10)}
        assert updates(Path("short")) == pytest.approx(expected, abs=1e-15)
        at = f"{expected[6]:.3g}"
        names(said, "schedule", "step 6", "from 6 to 10", "0", at)
        (extension,) = json.loads(Path("short/summary.json").read_text())["extensions"]
        assert extension["lr"] == pytest.approx(expected[6])
        assert (extension["step"], extension["planned_before"], extension["planned"]) == (6, 6, 10)
        assert extension["lr_before"] == 0
        assert not extension["same_so_far"]
        train("resume=short", "trainer.max_steps=11")
        again = json.loads(Path("short/summary.json").read_text())["extensions"]
        assert [entry["planned"] for entry in again] == [10, 11], "both are recorded"


def test_an_extension_that_was_stopped_goes_on_with_the_new_schedule(tmp_path: Path) -> None:
    write_data(tmp_path, 32)
    cosine = ("optim.schedule.decay=linear", "optim.schedule.warmup_steps=0", "callbacks.checkpoint.every=100")
    with inside(tmp_path):
        for name in ("whole", "half"):
            train(*RUN, *cosine, "trainer.max_steps=4", f"hydra.run.dir={name}")
        train("resume=whole", "trainer.max_steps=8")
        stopped("resume=half", "trainer.max_steps=8", after=5)  # micro-batches: after two steps more
        train("resume=half", "trainer.max_steps=8")
        whole, half = outcome(Path("whole")), outcome(Path("half"))
        assert [name for name in whole if half[name] != whole[name]] == []
        assert len(json.loads(Path("half/summary.json").read_text())["extensions"]) == 1


@pytest.mark.parametrize("at_end", [False, True])
def test_it_goes_on_past_its_early_stop(at_end: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And waits anew, also where it was stopped again before a new checkpoint; up to there it is the same run."""
    write_data(tmp_path, 32)
    early = ("callbacks=early_stopping", "callbacks.early_stopping.patience=2", "callbacks.checkpoint.keep=all")
    never = ("callbacks.early_stopping.min_delta=9", *CONSTANT)  # none is better than the first, of step 2: 6 ends it
    with inside(tmp_path):
        train(*RUN, *early, *never, f"trainer.max_steps={6 if at_end else 8}", "hydra.run.dir=run")
        began = outcome(Path("run"))
        assert began["steps"] == 6
        stopped("resume=run", "trainer.max_steps=20", after=1)
        capsys.readouterr()
        train("resume=run", "trainer.max_steps=20")
        names(capsys.readouterr().out, "made longer at step 6", "early stopping", "wait counter")
        longer, summary = outcome(Path("run")), json.loads(Path("run/summary.json").read_text())
        assert (longer["steps"], summary["stopped_early"]) == (10, True), "two more evaluations that are not better"
        (extension,) = summary["extensions"]
        assert extension["past_early_stop"]
        names(Extension(**extension).describe(), "early stopping", "up to here it is the run that had 20")
        assert longer["rows"][: len(began["rows"]) - 1] == began["rows"][:-1]
        train("resume=run", "trainer.max_steps=24")
        assert outcome(Path("run"))["steps"] == 14, "as often as it is asked for"


def test_a_shorter_or_another_run_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what is named instead works."""
    shutil.copytree(home, tmp_path / "copy")
    with inside(tmp_path / "copy"):
        shorter = refused(capsys, Path("half"), "resume=half", "trainer.max_steps=7")
        names(shorter, "trainer.max_steps", 8, 7)
        names(
            refused(capsys, Path("half"), "resume=half", "trainer.max_steps=9", "loss.beta=0.2"), "loss.beta", 0.1, 0.2
        )
        said = refused(capsys, Path("whole"), "resume=whole")
        names(said, "resume=whole:", "finished", remedy=("trainer.max_steps=MORE", "model.path=whole/policy"))
        own = [text for text in RUN if "model" not in text and "accumulate" not in text]
        own += ["model=zephyr", "model.path=whole/policy", "data=local", "trainer=cpu", "trainer.max_steps=1"]
        train(*own, "optim=adamw", "data.max_length=32", "data.max_prompt_length=16", "hydra.run.dir=on")


@pytest.mark.parametrize(
    ("schedule", "step", "before", "now", "same"),
    [
        (Schedule("constant", warmup_steps=2), 6, 6, 10, True),
        (Schedule("cosine", warmup_steps=50), 6, 60, 100, True),  # still warming up
        (Schedule("cosine", warmup_steps=0), 0, 6, 10, True),  # no update yet
        (Schedule("cosine", warmup_steps=0), 6, 6, 10, False),
        (Schedule("linear", warmup_steps=0), 3, 6, 10, False),
        (Schedule("constant", warmup_ratio=0.5), 6, 6, 10, False),
    ],
)
def test_whether_a_longer_run_had_the_same_updates(
    schedule: Schedule, step: int, before: int, now: int, same: bool
) -> None:
    extension = Extension.of_schedule(step, before, now, 0.5, schedule.factor)
    assert extension.same_so_far is same
    assert ("schedule changed" in extension.describe()) is not same
    names(extension.describe(), step, f"from {before} to {now}")


def test_the_policy_of_a_model_that_is_made_is_named_with_a_model_that_is_read() -> None:
    made = {"model": {"seed": 0}, "adapter": {"_target_": "caldpo.models.adapters.NoAdapter"}}
    names(new_run_remedy(made, Path("run")), "model=hf model.path=run/policy")
    read = made | {"model": {"path": "a/b"}}
    names(new_run_remedy(read, Path("run")), "model.path=run/policy")
    assert "model=hf" not in new_run_remedy(read, Path("run"))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ((*CONSTANT, "data.max_tokens_per_micro_batch=64"), "data.max_tokens_per_micro_batch"),
        ((*CONSTANT, "callbacks.checkpoint.every=null"), "callbacks.checkpoint.every"),
    ],
)
def test_what_else_stands_in_the_way(
    more: tuple[str, ...], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, 16)
    with inside(tmp_path):
        train(*RUN, *more, "trainer.max_steps=1", "hydra.run.dir=short")
        said = refused(capsys, Path("short"), "resume=short", "trainer.max_steps=2")
        names(said, "trainer.max_steps=2:", "short", why)
