"""``data.train`` on the command line as Hydra reads it, through training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from caldpo.evaluate import main as evaluate
from tests.helpers.command import RANDOM_MODEL, call, train
from tests.helpers.messages import names

QUICK = (
    *(text for text in RANDOM_MODEL if not text.startswith("data")),
    "model.num_layers=1",
    "model.num_heads=2",
    "trainer.max_steps=2",
    "trainer.val_check_interval=null",
    "trainer.progress_bar=false",
    "callbacks.samples.prompts=0",
    "data.micro_batch_size=4",
    "data.max_length=16",  # alone: the limit of prompts follows
    "data.on_shared_prompts=drop_train",
    "logger=csv",
    "console=compact",
)


@pytest.fixture(autouse=True)
def data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``d`` as on the hub, with 16 and 8 pairs, and ``saved`` as a DatasetDict of the same."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    lines = Path("pairs.jsonl").read_text().splitlines(keepends=True)
    Path("d").mkdir()
    for name, part in (
        ("train-00000-of-00002", lines[:8]),
        ("train-00001-of-00002", lines[8:16]),
        ("test", lines[16:]),
    ):
        Path("d", f"{name}.jsonl").write_text("".join(part))
    splits = {"train": lines[:16], "test": lines[16:]}
    made = {name: datasets.Dataset.from_list([*map(json.loads, part)]) for name, part in splits.items()}
    datasets.DatasetDict(made).save_to_disk("saved")


def told(folder: str) -> dict[str, Any]:
    """What a finished run says of its data."""
    summary = json.loads(Path(folder, "summary.json").read_text())
    assert summary["status"] == "finished"
    return summary["data"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("asked", "pairs"),
    [
        (("data=local", "data.train=d/"), (16, 8)),
        (("data=local", "data.train=saved", "data.test=d/test"), (16, 8)),
        (("data=local", "data.train=d/train*.jsonl", "data.test=[d/test.jsonl]"), (16, 8)),
        (("data=hub", "data.path=d"), (16, 8)),
        (("data=hub", "data.path=saved", 'data.train="train[:9]"', "data.test=test"), (9, 8)),
    ],
)
def test_every_way_to_name_data_trains(asked: tuple[str, ...], pairs: tuple[int, int]) -> None:
    train(*QUICK, *asked, "hydra.run.dir=run", "export=false")
    found = told("run")
    assert (found["train"]["pairs"], found["test"]["pairs"]) == pairs
    assert (found["max_length"], found["max_prompt_length"]) == (16, 8)


def test_a_mix_by_weight_is_trained_and_evaluated() -> None:
    mix = "data.train={d/train-00000-of-00002.jsonl: 1, d/train-00001-of-00002.jsonl: 0.5}"
    train(*QUICK, "data=local", mix, "data.test=d/test", "hydra.run.dir=run")
    found = told("run")
    assert found["train"]["pairs"] == 12
    names(found["notes"][0], "66.7%", "8 of 8 pairs")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["data"]["train"] == {"d/train-00000-of-00002.jsonl": 1, "d/train-00001-of-00002.jsonl": 0.5}
    call(evaluate, ["run", "suite=preference", "device=cpu"], None)
    assert json.loads(Path("run/evaluation/preference.json").read_text())["examples"] == 8


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("data.train=d/train-[0-9].jsonl",), ("data.train=", """'data.train="d/train-[0-9].jsonl"'""")),
        (("data.train=nowhere/*.jsonl",), ("data.train=nowhere/*.jsonl:", "file")),
        (("data.train=[d/train,d/tset]",), ("data.train=d/tset:", "tset", "did you mean test?")),
        (("data.train={d/train: 0.5, d/test: -1}",), ("data.train:", "weight", "d/test", "> 0")),
        (("data.train=owner/name",), ("data.train=owner/name:", "data=hub data.path=owner/name")),
        (("data.train=d", "data.path=d"), ("data.path=d:", "hub")),
        (("data.train=d", "data.revision=x"), ("data.revision:",)),
        (("data=hub", "data.path=d", "data.revision=x"), ("data.revision:", "did you mean data.source.revision?")),
        (("data=hub",), ("data.path:",)),
        (("data=hub", "data.path=./nowhere"), ("data.path=./nowhere:", "folder")),
    ],
)
def test_mistakes_are_answered_at_once(
    asked: tuple[str, ...], said: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    train(*QUICK, *(() if "data=hub" in asked else ("data=local",)), *asked, fails=2)
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {said[0]}")  # as one problem of several does not
    names(printed, *said[1:])


def test_a_batch_larger_than_the_data_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    quick = [text for text in QUICK if text != "console=compact"]
    train(*quick, "data=local", "data.train=d", "data.micro_batch_size=50", "hydra.run.dir=run", "export=false")
    printed = " ".join(capsys.readouterr().out.split())
    names(printed, "50 pairs", "data.micro_batch_size=50", 16)


def test_without_network_the_short_key_and_a_remedy_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    train(*QUICK, "data=hub", "data.path=owner/name", "hydra.run.dir=run", fails=1)
    printed = capsys.readouterr().err
    names(printed, "error: data.path=owner/name:", "hub", remedy="data.path=FOLDER")
