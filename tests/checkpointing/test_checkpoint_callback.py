"""When checkpoints are saved, which are kept, and what is checked at resume."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from caldpo.checkpointing.checkpoint_callback import Checkpoints
from caldpo.checkpointing.manifest import checkpoint_folders, verify
from caldpo.losses.dpo import DPO
from tests.helpers.messages import names
from tests.helpers.tiny_trainer import make_module
from tests.helpers.train_ranks import Pairs


def saved(folder: Path, *, epochs: int = 2, steps: int | None = None, **settings: Any) -> list[int]:
    """Optimiser steps at which there is a checkpoint after training; an epoch has 3 of them."""
    from caldpo.lightning_trainer import TrainerSettings
    from caldpo.training_run import fit

    folder.mkdir(exist_ok=True)
    callback = Checkpoints(**settings)
    trainer = TrainerSettings(progress_bar=False, max_epochs=epochs, max_steps=steps).build(folder, [], [callback])
    data = Pairs(8, None)
    data.plan_steps("padded", accumulation=1, world_size=1, max_epochs=epochs, max_steps=steps)
    fit(trainer, make_module(DPO()), data)
    found = checkpoint_folders(folder)
    assert all(verify(path).step == step for step, path in found.items())
    return list(found)


@pytest.mark.parametrize(
    ("every", "epochs", "steps", "expected"),
    [
        (2, 2, None, [2, 3, 4, 6]),  # every two, at the end of an epoch that is longer, and at the end of training
        (4, 2, None, [4, 6]),  # an epoch is shorter than that
        (100, 2, None, [6]),
        (2, 1, 5, [2, 3, 4, 5]),  # training ends within an epoch
        (None, 2, None, []),
    ],
)
def test_steps_at_which_checkpoints_are_saved(
    every: int | None, epochs: int, steps: int | None, expected: list[int], tmp_path: Path
) -> None:
    assert saved(tmp_path, epochs=epochs, steps=steps, every=every, keep="all") == expected


@pytest.mark.parametrize(("keep", "expected"), [(1, [6]), (2, [4, 6]), (3, [3, 4, 6])])
def test_the_last_checkpoints_are_kept(keep: int, expected: list[int], tmp_path: Path) -> None:
    assert saved(tmp_path, every=2, keep=keep) == expected


def test_a_disk_that_will_be_full_is_noted_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the first save two more have to fit; after the second, one that is written before the first one goes."""
    saved(tmp_path / "first", every=2)
    size = sum(path.stat().st_size for path in checkpoint_folders(tmp_path / "first")[6].iterdir())
    usage = namedtuple("usage", ("total", "used", "free"))
    capsys.readouterr()
    monkeypatch.setattr(
        "caldpo.checkpointing.checkpoint_callback.shutil.disk_usage", lambda _: usage(0, 0, 2 * size + size // 2)
    )
    saved(tmp_path / "enough", every=2)
    assert "note:" not in capsys.readouterr().err
    monkeypatch.setattr(
        "caldpo.checkpointing.checkpoint_callback.shutil.disk_usage", lambda _: usage(0, 0, size + size // 2)
    )
    saved(tmp_path / "scarce", every=2)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(warnings) == 1
    names(warnings[0], "MiB", 1, "of the 2", "callbacks.checkpoint.keep")
