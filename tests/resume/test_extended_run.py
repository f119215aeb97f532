"""A finished run that is made longer is the run that was as long from its beginning, or it is refused with a remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from caldpo.resume.config_diff import new_run_remedy
from tests.evaluation.runs import inside, write_data
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.runs import outcome
from tests.resume.stopped import RUN, contents, refused

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


def test_where_something_depends_on_the_length_it_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is named instead works."""
    shutil.copytree(home, tmp_path / "copy")
    with inside(tmp_path / "copy"):
        said = refused(capsys, Path("whole"), "resume=whole", "trainer.max_steps=9")
        names(said, "trainer.max_steps=9:", "whole", "optim.schedule.decay=cosine", remedy="model.path=whole/policy")
        said = refused(capsys, Path("whole"), *RUN, "trainer.max_steps=9", "hydra.run.dir=whole", "resume=auto", code=1)
        names(said, "trainer.max_steps=9:", remedy=("model.path=", "whole/policy"))  # of the folder, whatever its form
        for key, value in (("trainer.max_steps", 9), ("trainer.max_epochs", 99)):
            said = refused(capsys, Path("half"), "resume=half", f"{key}={value}")
            names(said, f"{key}={value}:", "half", remedy=f"leave {key} out")
            assert "half/policy" not in said, "it has no policy yet"
        shorter = refused(capsys, Path("half"), "resume=half", "trainer.max_steps=7")
        names(shorter, "trainer.max_steps", 8, 7)
        names(
            refused(capsys, Path("half"), "resume=half", "trainer.max_steps=9", "loss.beta=0.2"), "loss.beta", 0.1, 0.2
        )
        said = refused(capsys, Path("whole"), "resume=whole")
        names(said, "resume=whole:", "finished", remedy="model.path=whole/policy")
        own = [text for text in RUN if "model" not in text and "accumulate" not in text]
        own += ["model=zephyr", "model.path=whole/policy", "data=local", "trainer=cpu", "trainer.max_steps=1"]
        train(*own, "optim=adamw", "data.max_length=32", "data.max_prompt_length=16", "hydra.run.dir=on")


def test_the_policy_of_a_model_that_is_made_is_named_with_a_model_that_is_read() -> None:
    made = {"model": {"seed": 0}, "adapter": {"_target_": "caldpo.models.adapters.NoAdapter"}}
    names(new_run_remedy(made, Path("run")), "model=hf model.path=run/policy")
    read = made | {"model": {"path": "a/b"}}
    names(new_run_remedy(read, Path("run")), "model.path=run/policy")
    assert "model=hf" not in new_run_remedy(read, Path("run"))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("optim.schedule.decay=constant",), "optim.schedule.warmup_ratio"),
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
