"""resume=: what is gone on with, what is refused and why, and that a refusal changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from caldpo.checkpoints.manifest import TRAINING, WEIGHTS, Manifest, describe_files, read_manifest
from caldpo.module import PreferenceModule
from tests.command import train
from tests.evaluation.runs import inside, write_data
from tests.resuming.runs import BASE, outcome
from tests.security.traps import Trap, plant

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
    """Digests of all files, but for Hydra's own and the lock's."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.suffix != ".log"
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a run that was never stopped (``whole``) and the same one stopped after 6 of 8 steps (``half``)."""
    folder = tmp_path_factory.mktemp("resume")
    write_data(folder)
    with inside(folder):
        train(*RUN, "hydra.run.dir=whole")
        stopped(*RUN, "hydra.run.dir=half")
    return folder


@pytest.fixture
def half(home: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the stopped run, with its data beside it, in the current folder."""
    shutil.copytree(home, tmp_path / "copy")
    with inside(tmp_path / "copy"):
        yield tmp_path / "copy" / "half"


def refused(capsys: pytest.CaptureFixture[str], half: Path, *overrides: str, code: int = 2) -> str:
    """What is said of a command that is refused; nothing in the run's folder changes."""
    before = contents(half)
    capsys.readouterr()
    train(*overrides, fails=code)
    assert contents(half) == before
    return capsys.readouterr().err


def same(home: Path, run: Path) -> None:
    whole, found = outcome(home / "whole"), outcome(run)
    assert [name for name in whole if found[name] != whole[name]] == []


def test_a_stopped_run_says_so_and_how_to_go_on(home: Path, half: Path) -> None:
    summary = json.loads((half / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert read_manifest(half / "checkpoints" / "step-6").step == 6
    train("resume=half")
    same(home, half)
    summary = json.loads((half / "summary.json").read_text())
    assert summary["stretches"] == 2
    assert summary["overrides"] == [*RUN, "hydra.run.dir=half"][:-1]
    assert yaml.safe_load((half / "config.yaml").read_text()) == yaml.safe_load(
        (home / "whole/config.yaml").read_text()
    )


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    home: Path, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = half / "checkpoints" / "step-6" / WEIGHTS
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(bytes(damaged))
    train("resume=half")
    said = " ".join(capsys.readouterr().err.split())
    assert f"step-6 is damaged: {WEIGHTS} is not what was written (its SHA-256 differs); the one before it is" in said
    assert "going on after 5 optimiser steps" in said
    same(home, half)
    assert (half / "checkpoints" / "damaged-step-6").is_dir(), "nothing is thrown away"


def test_without_any_whole_checkpoint_it_begins_anew(
    home: Path, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (half / "checkpoints").iterdir():
        (folder / TRAINING).unlink()
    train("resume=half")
    assert "going on at its beginning: it has no checkpoint" in capsys.readouterr().err
    same(home, half)


def test_another_configuration_is_refused_with_both_values(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, half, "resume=half", "optim.lr=0.5", "loss.beta=0.2")
    assert "half was begun with another configuration: loss.beta was 0.1, is 0.2; optim.lr was 0.01, is 0.5" in said
    assert "reward_beta" in said  # it follows the loss's
    said = refused(capsys, half, *RUN, "hydra.run.dir=half", "resume=auto", "seed=3", code=1)
    assert "data.seed was 0, is 3; seed was 0, is 3" in said


def test_what_no_number_depends_on_may_change(home: Path, half: Path) -> None:
    more = ("trainer.fetch_every=3", "callbacks.checkpoint.every=4", "console=line", "data.num_workers=1")
    train("resume=half", *more)
    whole, found = outcome(home / "whole"), outcome(half)
    assert [name for name in whole if found[name] != whole[name]] == []


def test_another_reference_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder still has the same name and shape; only the weights are others."""
    write_data(tmp_path)
    with inside(tmp_path):
        train(*RUN, "hydra.run.dir=start", "trainer.max_steps=1")
        with_model = [text for text in RUN if "model" not in text]
        with_model += ["model=zephyr", "model.path=start/policy", "data=local", "model.dtype=float32", "trainer=cpu"]
        with_model += ["trainer.max_steps=8", "optim=adamw", "data.max_length=32", "data.max_prompt_length=16"]
        with_model += ["model.gradient_checkpointing=false", "reference=resident"]
        stopped(*with_model, "hydra.run.dir=half")
        shutil.rmtree("start/policy")
        train(*RUN, "hydra.run.dir=other", "trainer.max_steps=1", "model.seed=5")
        shutil.copytree("other/policy", "start/policy")
        kept = contents(tmp_path / "half" / "checkpoints")
        train("resume=half", fails=1)
        assert "resume: the reference's weights changed since the checkpoint was written" in capsys.readouterr().err
        assert contents(tmp_path / "half" / "checkpoints") == kept


@pytest.mark.parametrize(("file", "said"), [("train.jsonl", "training"), ("test.jsonl", "held-out")])
def test_other_data_are_refused(file: str, said: str, half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Path(file).read_text().splitlines()
    row = json.loads(rows[3])
    rows[3] = json.dumps(row | {"chosen": row["chosen"] + " w1"})
    Path(file).write_text("\n".join(rows))
    kept = contents(half / "checkpoints")
    train("resume=half", fails=1)
    assert f"resume: the tokens of the {said} pairs changed since the checkpoint" in capsys.readouterr().err
    assert contents(half / "checkpoints") == kept


def test_what_cannot_be_gone_on_with(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "resume=whole: this run has finished" in refused(capsys, half, "resume=whole")
    assert "resume=nowhere: there is no such folder" in refused(capsys, half, "resume=nowhere")
    assert "resume=tokenizer: holds no run" in refused(capsys, half, "resume=tokenizer")
    assert "resume=half: goes on with one run" in refused(capsys, half, "-m", "resume=half", "seed=0,1")


def test_a_run_is_never_written_over(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, half, *RUN, "hydra.run.dir=half", code=1)
    assert "half: this folder holds a run already, which would be written over" in said
    assert "add resume=auto" in said


@pytest.mark.parametrize("file", ["metrics.csv", "samples.jsonl"])
def test_a_file_that_lost_what_the_checkpoint_counts_on(
    file: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = half / file
    path.write_bytes(path.read_bytes()[:40])
    train("resume=half", fails=1)
    said = capsys.readouterr().err
    assert "the run cannot go on from" in said
    assert file in said


def test_a_sweep_goes_on_with_what_is_left(home: Path, half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run has finished and is left alone, one was stopped, one was never begun."""
    sweep = (
        "-m",
        *(text for text in RUN if not text.startswith("loss=")),
        "loss=dpo,ipo,slic",
        "hydra.sweep.dir=sweep",
    )
    sweep += ("hydra.sweep.subdir=run-${hydra.job.num}",)
    stopped(*sweep, after=16 + 13)
    runs = [Path("sweep") / f"run-{number}" for number in range(3)]
    states = [json.loads((run / "summary.json").read_text())["status"] for run in runs if run.exists()]
    assert states == ["finished", "interrupted"]
    first = contents(runs[0])
    capsys.readouterr()
    train("resume=sweep", fails=2)
    assert "is a sweep, not a run" in (said := capsys.readouterr().err)
    assert "hydra.sweep.dir=sweep resume=auto" in said
    train(*sweep, "resume=auto")
    said = capsys.readouterr()
    assert "run 0: run-0 finished already" in said.out
    assert "going on after 6 optimiser steps" in said.err
    assert contents(runs[0]) == first
    assert [json.loads((run / "summary.json").read_text())["status"] for run in runs] == ["finished"] * 3
    same(home, runs[0])


def test_a_pickle_in_a_checkpoint_is_not_executed(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even where its manifest vouches for it."""
    sprung, folder = half.parent / "sprung", half / "checkpoints" / "step-6"
    torch.save({"state_dict": {}, "callbacks": Trap(sprung)}, folder / TRAINING)
    manifest = vars(read_manifest(folder)) | {"files": describe_files(folder)}
    Manifest(**manifest).write(folder)
    train("resume=half", fails=1)
    assert not sprung.exists()
    assert "training.pt: cannot be read: it is damaged, or holds something else than tensors" in capsys.readouterr().err
    torch.load(folder / TRAINING, weights_only=False)
    assert sprung.exists(), "a trap that would have sprung"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+callbacks.x={_target_: pathlib.Path}", "names a class"),
        ("callbacks.samples._target_=pathlib.Path", "names a class"),
        ("name=${oc.env:HOME}", "refers to something outside the run"),
        ("hydra.job_logging.x=1", "sets what is Hydra's own"),
        ("model=../../secret", "chooses an option by a path"),
    ],
)
def test_somebody_elses_run_cannot_bring_code(
    override: str, said: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((half / "summary.json").read_text())
    summary["overrides"].append(override)
    (half / "summary.json").write_text(json.dumps(summary))
    refusal = refused(capsys, half, "resume=half")
    assert said in refusal
    assert "trust_code=true" in refusal


def test_a_run_cannot_say_itself_that_it_is_trusted(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((half / "summary.json").read_text())
    summary["overrides"] += ["trust_code=true", "callbacks.samples._target_=pathlib.Path"]
    (half / "summary.json").write_text(json.dumps(summary))
    assert "names a class" in refused(capsys, half, "resume=half")


def test_what_is_planted_in_a_run_is_not_executed(home: Path, half: Path) -> None:
    mark = half.parent / "sprung"
    plant(half, mark)
    train("resume=half")
    assert not mark.exists()
    same(home, half)


def test_a_run_that_links_elsewhere_writes_nothing_there(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = half.parent / "elsewhere.csv"
    shutil.move(half / "metrics.csv", elsewhere)
    (half / "metrics.csv").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    train("resume=half", fails=1)
    assert "outside the folder" in capsys.readouterr().err
    assert elsewhere.read_bytes() == before


def test_a_secret_has_to_be_typed_again(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((half / "summary.json").read_text())
    summary["overrides"].append("+logger.api_key=***")
    (half / "summary.json").write_text(json.dumps(summary))
    assert "logger.api_key: was left out of the run's files, being a secret" in refused(capsys, half, "resume=half")


def test_a_bad_number_leaves_a_checkpoint_to_replay_and_to_go_on_from(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step's gradient was caught before it met the weights."""
    original = PreferenceModule.configure_gradient_clipping

    def spoilt(self, *given, **more):
        if self.global_step == 7:
            next(p for p in self.policy.parameters() if p.grad is not None).grad[0] = float("nan")
        original(self, *given, **more)

    monkeypatch.setattr(PreferenceModule, "configure_gradient_clipping", spoilt)
    train("resume=half", fails=1)
    assert read_manifest(half / "checkpoints" / "step-7").step == 7
    assert (half / "bad_batches" / "step-7.safetensors").is_file()
    train("resume=half", "trainer.on_bad_numbers=skip")
    summary = json.loads((half / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["skipped_steps"]) == ("finished", 8, 1)
