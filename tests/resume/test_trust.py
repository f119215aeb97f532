"""Somebody else's run that is gone on with: none of its code is run, and nothing outside it is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from caldpo.checkpointing.manifest import TRAINING, Manifest, describe_files, read_manifest
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.stopped import RUN, refused, same
from tests.security.traps import Trap, plant


def test_a_pickle_in_a_checkpoint_is_not_executed(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even where its manifest vouches for it."""
    sprung, folder = half.parent / "sprung", half / "checkpoints" / "step-6"
    torch.save({"state_dict": {}, "callbacks": Trap(sprung)}, folder / TRAINING)
    manifest = vars(read_manifest(folder)) | {"files": describe_files(folder)}
    Manifest(**manifest).write(folder)
    train("resume=half", fails=1)
    assert not sprung.exists()
    names(capsys.readouterr().err, folder / TRAINING, "tensors")
    torch.load(folder / TRAINING, weights_only=False)
    assert sprung.exists(), "a trap that would have sprung"


@pytest.mark.parametrize(
    ("override", "term"),
    [
        ("+callbacks.x={_target_: pathlib.Path}", "class"),
        ("callbacks.samples._target_=pathlib.Path", "class"),
        ("name=${oc.env:HOME}", "outside"),
        ("name=x$\\{oc.env:HOME\\}", "outside"),
        ("experiment=[/abs/x]", "list"),
        ("hydra.job_logging.x=1", "Hydra"),
        ("model=../../secret", "path"),
    ],
)
def test_somebody_elses_run_cannot_bring_code(
    override: str, term: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((half / "summary.json").read_text())
    summary["overrides"].append(override)
    (half / "summary.json").write_text(json.dumps(summary))
    refusal = refused(capsys, half, "resume=half")
    names(refusal, "half/summary.json", override, term, remedy="allow_untrusted_code=true")


def test_a_run_cannot_say_itself_that_it_is_trusted(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((half / "summary.json").read_text())
    summary["overrides"] += ["allow_untrusted_code=true", "callbacks.samples._target_=pathlib.Path"]
    (half / "summary.json").write_text(json.dumps(summary))
    names(refused(capsys, half, "resume=half"), "half/summary.json", remedy="allow_untrusted_code=true")


def test_what_is_planted_in_a_run_is_not_executed(home: Path, half: Path) -> None:
    mark = half.parent / "sprung"
    plant(half, mark)
    train("resume=half")
    assert not mark.exists()
    same(home, half)


@pytest.mark.parametrize(
    "name",
    ["metrics.csv", "rejected_rows.jsonl", "train.log", ".hydra", ".run.lock", "wandb", "nonfinite_batches", "policy"],
)
@pytest.mark.parametrize(
    "command", [("resume=half",), (*RUN, "hydra.run.dir=half", "resume=auto")], ids=["path", "auto"]
)
def test_a_run_that_links_elsewhere_writes_nothing_there(
    command: tuple[str, ...], name: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere, link = half.parent / "elsewhere", half / name
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    if name in (".hydra", "wandb", "nonfinite_batches", "policy"):
        elsewhere.mkdir()
    link.symlink_to(elsewhere)
    train(*command, fails=2 if command == ("resume=half",) else 1)
    names(capsys.readouterr().err, f"half/{name}", elsewhere)
    assert not elsewhere.exists() or list(elsewhere.iterdir()) == []


def test_a_secret_has_to_be_typed_again(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((half / "summary.json").read_text())
    summary["overrides"].append("+logger.api_key=***")
    (half / "summary.json").write_text(json.dumps(summary))
    names(refused(capsys, half, "resume=half"), "error: logger.api_key:", "secret", remedy="resume=")
