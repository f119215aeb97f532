"""A checkpoint folder round-trips, damage is detected, and a failed save leaves the last one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from caldpo.checkpointing.checkpoint_io import CheckpointFolders, load_weights
from caldpo.checkpointing.manifest import (
    MANIFEST,
    TRAINING,
    WEIGHTS,
    DamagedCheckpointError,
    checkpoint_folders,
    newest_intact,
    verify,
)
from caldpo.errors import CaldpoError
from tests.helpers.messages import names, refused


def checkpoint(step: int = 7) -> dict[str, Any]:
    """As Lightning hands one over: tied weights, a slice that shares memory, integers, NaN and -0.0."""
    table = torch.tensor([[0.5, -0.0], [float("nan"), 3e-45]])
    return {
        "state_dict": {
            "policy.embed": table,
            "policy.head": table,
            "policy.first": table[0],
            "policy.turned": torch.arange(6.0).reshape(2, 3).T,
            "policy.count": torch.tensor(3),
            "policy.none": torch.zeros(0, 4),
        },
        "optimizer_states": [{"state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.ones(2)}}}],
        "lr_schedulers": [{"last_epoch": 7}],
        "caldpo": {"module": {"rows": 9}, "manifest": {"step": step, "rows": 9, "samples": 80, "seconds": 1.5}},
    }


def bits(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: (value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, value in state.items()
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of the second of two checkpoints of a run."""
    for step in (5, 7):
        CheckpointFolders().save_checkpoint(checkpoint(step), tmp_path / "checkpoints" / f"step-{step}")
    return tmp_path / "checkpoints" / "step-7"


def test_a_checkpoint_round_trips(saved: Path) -> None:
    loaded = CheckpointFolders().load_checkpoint(saved)
    assert bits(loaded["state_dict"]) == bits(checkpoint()["state_dict"])
    assert loaded["optimizer_states"][0]["state"][0]["step"] == 7
    assert loaded["lr_schedulers"] == [{"last_epoch": 7}]
    assert sorted(path.name for path in saved.iterdir()) == sorted((MANIFEST, TRAINING, WEIGHTS))
    assert (saved / WEIGHTS).stat().st_size < 1000, "tied weights lie there once"


def test_tied_weights_are_tied_again_after_loading(saved: Path) -> None:
    weights = load_weights(saved)
    assert weights["policy.head"].data_ptr() == weights["policy.embed"].data_ptr()
    assert weights["policy.first"].data_ptr() != weights["policy.embed"].data_ptr()


def test_an_existing_folder_is_replaced(saved: Path) -> None:
    changed = checkpoint()
    changed["state_dict"] = {"policy.new": torch.ones(1)}
    CheckpointFolders().save_checkpoint(changed, saved)
    assert list(load_weights(saved)) == ["policy.new"]
    assert verify(saved).step == 7


def test_a_removed_checkpoint_leaves_no_files(saved: Path) -> None:
    CheckpointFolders().remove_checkpoint(saved)
    assert list(checkpoint_folders(saved.parents[1])) == [5]
    assert list(saved.parent.glob(".*")) == []


@pytest.mark.parametrize("name", [WEIGHTS, TRAINING, MANIFEST])
def test_a_flipped_bit_in_any_file_is_detected(saved: Path, name: str) -> None:
    """Also where the file still loads: in the middle of a tensor nothing else would tell."""
    file = saved / name
    whole = file.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(bytes(flipped))
        with pytest.raises(DamagedCheckpointError):
            verify(saved)
        found, manifest, damages = newest_intact(saved.parents[1])
        assert found is not None
        assert manifest is not None
        assert (found.name, manifest.step) == ("step-5", 5)
        names(damages[0], saved, name)
    file.write_bytes(whole)
    assert newest_intact(saved.parents[1])[0] == saved


def test_the_damage_is_described(saved: Path) -> None:
    file = saved / WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with refused(WEIGHTS, len(whole) - 1, len(whole), kind=DamagedCheckpointError):
        verify(saved)
    file.unlink()
    with refused(WEIGHTS, "missing", kind=DamagedCheckpointError):
        verify(saved)
    (saved / MANIFEST).write_text("{")
    with refused(MANIFEST, "read", kind=DamagedCheckpointError):
        verify(saved)
    content = json.loads((saved.parent / "step-5" / MANIFEST).read_text())
    (saved.parent / "step-5" / MANIFEST).write_text(json.dumps(content | {"rows": 1}))
    with refused(MANIFEST, kind=DamagedCheckpointError):
        verify(saved.parent / "step-5")


def test_a_checkpoint_renamed_to_another_step_is_not_used(saved: Path) -> None:
    saved.rename(saved.with_name("step-9"))
    found, _, damages = newest_intact(saved.parents[1])
    assert found == saved.with_name("step-5")
    names(damages[0], saved.with_name("step-9"), "step 7")


def test_a_failed_save_reports_its_size_and_the_free_space(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no error of its own for a full disk: it raises RuntimeError."""

    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:800] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr("caldpo.checkpointing.checkpoint_io.torch.save", full)
    with pytest.raises(CaldpoError) as stopped:
        CheckpointFolders().save_checkpoint(checkpoint(9), saved.with_name("step-9"))
    facts = ("step 9", "[enforce fail at inline_container.cc:800]", "0.0 MiB", "step 7")
    names(stopped, *facts, key=saved.with_name("step-9"), remedy=f"resume={saved.parents[1]}")
    assert re.search(r"[\d,]+ MiB are free", str(stopped.value))
    assert sorted(path.name for path in saved.parent.iterdir()) == ["step-5", "step-7"], "no draft is left"
