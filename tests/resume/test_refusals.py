"""What a person has taken out, misspelt or run out of is answered by its key and a remedy, and no traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from caldpo.config.validation import NEEDED
from tests.evaluation.runs import inside
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.stopped import RUN


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    capsys.readouterr()
    train(*arguments, fails=code)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "What to do:" in said
    return said


@pytest.mark.parametrize("group", NEEDED)
def test_a_group_that_was_taken_out(group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(tmp_path):
        names(answer(capsys, f"~{group}", code=2), f"error: {group}:", "group")


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ("loss._target_=nowhere.Loss", ["error: loss._target_=nowhere.Loss:", "Error loading"]),
        ("+callbacks.mine._target_=os.nothing", ["error: callbacks.mine._target_=os.nothing:"]),
        ("+callbacks.mine._target_=os.getcwd", ["error: callbacks.mine._target_:", "str", "callback"]),
        ("~optim.schedule", ["error: optim:", "caldpo.optim.torch_optimizers.AdamW", "schedule"]),
    ],
)
def test_what_cannot_be_built(given: str, facts: list[str], half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names(answer(capsys, *RUN, given, code=1), *facts)


def test_what_may_be_switched_off(half: Path) -> None:
    """Hydra's own loggers, and a callback by null; a log is written where something was logged."""
    off = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "callbacks.oracle=null")
    train(*RUN, *off, "trainer.max_steps=1", "hydra.run.dir=off")
    assert not Path("off/train.log").exists()
    assert Path("off/policy").is_dir()


@pytest.mark.parametrize("writes", [1, 4, 9])
def test_a_full_disk_at_resume(
    writes: int, half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it fills first."""
    real, seen = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal seen
        seen += 1
        if seen >= writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = answer(capsys, "resume=half", code=1)
    assert "No space left on device" in said
    train("resume=half")
