"""A secret in the environment, on the command line or in an address is in no file that a run leaves."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

import caldpo.training_run
from tests.evaluation.runs import evaluate
from tests.helpers.command import RANDOM_MODEL, call, train
from tests.helpers.wandb_file import wait_until_written
from tests.security.secrets import ENVIRONMENT, GIVEN, IN_ADDRESS, leaks, set_environment

RUN = (
    *RANDOM_MODEL,
    "trainer.max_steps=2",
    "trainer.val_check_interval=null",
    "trainer.progress_bar=false",
    "callbacks.oracle.prompts=0",
    "callbacks.samples.prompts=1",
    "callbacks.samples.max_new_tokens=2",
    "console=compact",
    f"+hydra.job.env_set.CLIENT_SECRET={GIVEN}",
    f"+hydra.job.env_set.SERVICE=https://me:{IN_ADDRESS}@host/",
)
SHOWN = [*ENVIRONMENT.values(), GIVEN, f"https://me:{IN_ADDRESS}@host/x"]


@pytest.fixture
def talkative(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trainings that say every secret wherever a program can say something, and one with seed 7 fails with them."""
    set_environment(monkeypatch)
    original = caldpo.training_run.print_facts

    def say(title: str, facts: dict[str, str]) -> None:
        original(title, facts)
        if title != "Run":
            return
        for secret in SHOWN:
            print(secret)
            warnings.warn(secret, stacklevel=1)
            logging.getLogger("library").warning("%s", secret)
            try:
                raise KeyError(secret)
            except KeyError:
                logging.getLogger("library").exception("caught")
        if facts["seed"] == "7":
            raise RuntimeError(" ".join(SHOWN)) from ValueError(SHOWN[0])

    monkeypatch.setattr(caldpo.training_run, "print_facts", say)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_file_below_the_output_folder_holds_a_secret(talkative: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One training with W&B that finishes, one that fails, a sweep with both, a dry run; evaluated and compared."""
    from caldpo.compare import main as compare
    from caldpo.estimate import main as estimate

    train(*RUN, "logger=wandb", "hydra.run.dir=outputs/finished")
    train(*RUN, "logger=csv", "hydra.run.dir=outputs/failed", "seed=7", fails=1)
    train("-m", *RUN, "logger=wandb", "hydra.sweep.dir=outputs/sweep", "seed=0,7", fails=1)
    train(*RUN, "dry_run=true", "hydra.run.dir=outputs/dry")
    call(estimate, [*RUN, "hydra.run.dir=outputs/estimate"], None)
    evaluate("outputs/finished", "suite=preference", "preference.resamples=10")
    call(compare, ["outputs/sweep"], None)
    for stretch in Path("outputs").rglob("run-*.wandb"):
        if "failed" not in str(stretch):
            wait_until_written(stretch)

    said = capsys.readouterr()
    assert "RuntimeError: *** *** *** *** *** *** https://***@host/x" in said.err
    assert not any(secret in said.out + said.err for secret in SHOWN)
    outputs = talkative / "outputs"
    written: dict[str, Any] = {path.relative_to(outputs).as_posix(): path for path in outputs.rglob("*")}
    for name in (
        "finished/train.log",
        "finished/output.txt",
        "finished/policy/model.safetensors",
        "finished/evaluation/preference.json",
        "failed/error.txt",
        "failed/.hydra/hydra.yaml",
        "failed/.hydra/overrides.yaml",
        "sweep/multirun.yaml",
        "sweep/sweep.json",
        "sweep/report.md",
        "sweep/seed=7/error.txt",
    ):
        assert name in written, f"{name} is to be looked at"
    assert sum(name.endswith(".wandb") for name in written) == 3  # also of the run that failed
    assert "***" in written["finished/train.log"].read_text()
    assert "***" in written["failed/error.txt"].read_text()
    assert "***" in written["failed/.hydra/hydra.yaml"].read_text()
    assert leaks(outputs) == []


def test_the_search_finds_every_secret(tmp_path: Path) -> None:
    for number, secret in enumerate([*ENVIRONMENT.values(), GIVEN, IN_ADDRESS]):
        (tmp_path / f"{number}").write_bytes(b"\x00\xff" + secret[:7].encode() + b"\n  " + secret[7:].encode())
    assert len(leaks(tmp_path)) == len(ENVIRONMENT) + 2
