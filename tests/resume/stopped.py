"""Runs that were stopped, in the test's own process, and what may not change when a command is refused."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from caldpo.lightning_module import PreferenceModule
from tests.helpers.command import train
from tests.resume.runs import BASE, outcome

RUN = (*BASE, "loss=dpo", "trainer.max_steps=8", "callbacks.samples.prompts=1")


def stopped(*overrides: str, after: int = 13, code: int = 143) -> None:
    """Train, with a SIGTERM at the ``after``-th micro-batch: two of them make an optimiser step."""
    original, seen = PreferenceModule.training_step, 0

    def step(self, batch, batch_idx):
        nonlocal seen
        seen += 1
        if seen == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreferenceModule, "training_step", step)
        train(*overrides, fails=code)


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files but the log, hidden ones too."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".log")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(capsys: pytest.CaptureFixture[str], half: Path, *overrides: str, code: int = 2) -> str:
    """What is said of a command that is refused; nothing in the run's folder changes."""
    before = contents(half)
    capsys.readouterr()
    train(*overrides, fails=code)
    assert contents(half) == before
    return capsys.readouterr().err


def same(home: Path, run: Path) -> None:
    """The run is the one that was never stopped."""
    whole, found = outcome(home / "whole"), outcome(run)
    assert [name for name in whole if found[name] != whole[name]] == []
