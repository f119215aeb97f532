"""resume=: what is gone on with, what is refused and why, and that a refusal changes nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from caldpo.checkpointing.manifest import FOLDER, TRAINING, WEIGHTS, read_manifest
from caldpo.lightning_module import PreferenceModule
from tests.evaluation.runs import inside, write_data
from tests.helpers.command import train
from tests.helpers.messages import holds, names
from tests.resume.runs import outcome
from tests.resume.stopped import RUN, contents, refused, same, stopped


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
    names(capsys.readouterr().err, "step-6", WEIGHTS, "SHA-256", "step-5")
    same(home, half)
    assert (half / "checkpoints" / "damaged-step-6").is_dir(), "nothing is thrown away"


def test_without_any_whole_checkpoint_nothing_is_thrown_away(
    home: Path, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (half / FOLDER).iterdir():
        (folder / TRAINING).rename(folder / "elsewhere")
    kept = contents(half / FOLDER), (half / "metrics.csv").read_bytes(), (half / "samples.jsonl").read_bytes()
    train("resume=half", fails=1)
    assert (contents(half / FOLDER), (half / "metrics.csv").read_bytes(), (half / "samples.jsonl").read_bytes()) == kept
    said = capsys.readouterr().err.replace(f"{half}/", "half/")
    names(said, "half/checkpoints/step-6", "half/checkpoints/step-5", "training.pt", "missing")
    shutil.rmtree(half / FOLDER)
    train("resume=half")
    names(capsys.readouterr().err, "no checkpoint")
    same(home, half)


def test_a_disk_that_does_not_give_a_checkpoint_is_not_taken_for_damage(
    half: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("caldpo.checkpointing.manifest.file_digest", fails)
    kept = contents(half / FOLDER), (half / "metrics.csv").read_bytes()
    train("resume=half", fails=1)
    names(capsys.readouterr().err, "error: resume", "checkpoint", "[Errno 5] Input/output error")
    assert (contents(half / FOLDER), (half / "metrics.csv").read_bytes()) == kept


def test_a_checkpoint_of_another_run_is_refused(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same model and data, but trained with another beta; it is whole."""
    stopped(*RUN, "loss.beta=0.3", "hydra.run.dir=other")
    shutil.rmtree(half / FOLDER / "step-6")
    shutil.copytree(Path("other") / FOLDER / "step-6", half / FOLDER / "step-6")
    kept = contents(half / FOLDER), (half / "metrics.csv").read_bytes()
    capsys.readouterr()
    train("resume=half", fails=1)
    names(capsys.readouterr().err, "error: resume", "configuration", "changed")
    assert (contents(half / FOLDER), (half / "metrics.csv").read_bytes()) == kept


def test_another_configuration_is_refused_with_both_values(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, half, "resume=half", "optim.lr=0.5", "loss.beta=0.2")
    names(said, "error: resume", "half")
    assert re.search(r"loss\.beta \D*0\.1\D+0\.2; optim\.lr \D*0\.01\D+0\.5\D", said), said
    assert "reward_beta" not in said  # the unit of rewards is none of the loss's
    said = refused(capsys, half, *RUN, "hydra.run.dir=half", "resume=auto", "seed=3", code=1)
    assert re.search(r"data\.seed \D*0\D+3; seed \D*0\D+3\D", said), said


def test_the_checkpoints_cannot_be_left_out(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are what knows how to go on."""
    names(refused(capsys, half, "resume=half", "~callbacks.checkpoint"), "callbacks.checkpoint._target_")


@pytest.mark.parametrize("text", ['{"status": "runn', "[1]"])
def test_a_damaged_summary_stops_nothing(text: str, home: Path, half: Path) -> None:
    (half / "summary.json").write_text(text)
    train("resume=half")
    same(home, half)


def test_what_no_number_depends_on_may_change(home: Path, half: Path) -> None:
    more = ("trainer.metrics_sync_every=3", "callbacks.checkpoint.every=4", "console=compact", "data.num_workers=1")
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
        with_model += ["model.gradient_checkpointing=false", "reference=frozen"]
        stopped(*with_model, "hydra.run.dir=half")
        shutil.rmtree("start/policy")
        train(*RUN, "hydra.run.dir=other", "trainer.max_steps=1", "model.seed=5")
        shutil.copytree("other/policy", "start/policy")
        kept = contents(tmp_path / "half" / "checkpoints")
        train("resume=half", fails=1)
        names(capsys.readouterr().err, "error: resume", "reference's weights", "changed")
        assert contents(tmp_path / "half" / "checkpoints") == kept


@pytest.mark.parametrize(("file", "split"), [("train.jsonl", "training"), ("test.jsonl", "held-out")])
def test_other_data_are_refused(file: str, split: str, half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model loads, and before the rows that a kill left behind the checkpoint are cut off."""
    with (half / "metrics.csv").open("a") as metrics:
        metrics.write((half / "metrics.csv").read_text().splitlines()[-1] + "\r\n")
    rows = Path(file).read_text().splitlines()
    row = json.loads(rows[3])
    rows[3] = json.dumps(row | {"chosen": row["chosen"] + " w1"})
    Path(file).write_text("\n".join(rows))
    kept = contents(half / "checkpoints"), (half / "metrics.csv").read_bytes()
    train("resume=half", fails=1)
    names(capsys.readouterr().err, "error: resume", f"{split} pairs", "changed")
    assert (contents(half / "checkpoints"), (half / "metrics.csv").read_bytes()) == kept


def test_what_cannot_be_gone_on_with(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names(refused(capsys, half, "resume=whole"), "error: resume=whole:", "finished")
    names(refused(capsys, half, "resume=nowhere"), "error: resume=nowhere:", "folder")
    names(refused(capsys, half, "resume=tokenizer"), "error: resume=tokenizer:", "no run")
    said = refused(capsys, half, "resume=half", "hydra.run.dir=elsewhere")
    names(said, "error: hydra.run.dir=elsewhere:")
    assert not Path("elsewhere").exists()
    names(refused(capsys, half, "-m", "resume=half", "seed=0,1"), "error: resume=half:", "one run")


@pytest.mark.parametrize("name", ["NODE_RANK", "RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_a_foreign_rank_writes_over_no_run(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Left in the shell by another program: this run is one process, and its first."""
    monkeypatch.setenv(name, "1")
    with inside(home):
        said = refused(capsys, home / "whole", *RUN, "hydra.run.dir=whole", code=1)
        names(said, key="hydra.run.dir", value="whole", remedy="resume=auto")


def test_a_run_is_never_written_over(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["loss=ipo", "seed=5"], ["dry_run=true"], ["replay=pairs.jsonl"]):
        Path("pairs.jsonl").touch()
        names(refused(capsys, half, *RUN, *more, "hydra.run.dir=half", code=1), key="hydra.run.dir", value="half")
    said = refused(capsys, half, *RUN, "hydra.run.dir=half", code=1)
    names(said, key="hydra.run.dir", value="half", remedy="resume=auto")


@pytest.mark.parametrize("again", [("resume=half",), (*RUN, "hydra.run.dir=half", "resume=auto")])
@pytest.mark.parametrize("left", ["checkpoints", "metrics.csv"])
def test_a_run_that_lost_its_configuration_is_not_begun_anew(
    left: str, again: tuple[str, ...], half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (half / "config.yaml").unlink()
    if left == "metrics.csv":
        shutil.rmtree(half / "checkpoints")
    else:
        (half / "metrics.csv").unlink()
    said = refused(capsys, half, *again, code=1)
    names(said, "error: resume", "half", "config.yaml", "missing")


@pytest.mark.parametrize("file", ["metrics.csv", "samples.jsonl"])
def test_a_file_that_lost_what_the_checkpoint_counts_on(
    file: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = half / file
    path.write_bytes(path.read_bytes()[:40])
    train("resume=half", fails=1)
    said = capsys.readouterr().err
    names(said, file)


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
    remedy = ("python -m caldpo.train -m", "loss=dpo,ipo,slic", "hydra.sweep.dir=sweep resume=auto")
    names(capsys.readouterr().err, "error: resume=sweep:", "sweep", remedy=remedy)
    train(*sweep, "resume=auto")
    said = capsys.readouterr()
    (skipped,) = (line for line in said.out.splitlines() if holds(line, "run 0:"))
    names(skipped, "run-0", "finished")
    names(said.err, "step-6")
    assert contents(runs[0]) == first
    assert [json.loads((run / "summary.json").read_text())["status"] for run in runs] == ["finished"] * 3
    same(home, runs[0])


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
    assert (half / "nonfinite_batches" / "step-7.json").is_file()
    before = contents(half)
    train("resume=half", "replay=half/nonfinite_batches/step-7.json", "hydra.run.dir=replayed")
    assert contents(half).items() >= before.items(), "a replay changes nothing about the run"
    train("resume=half", "trainer.on_nonfinite=skip")
    summary = json.loads((half / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["skipped_steps"]) == ("finished", 8, 1)
