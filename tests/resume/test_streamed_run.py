"""A run on streamed pairs: stopped and resumed it is the same; what a stream cannot have is refused at its start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluation.runs import inside, write_data
from tests.helpers.command import train
from tests.helpers.messages import names
from tests.resume.runs import outcome
from tests.resume.stopped import RUN, refused, stopped

STREAMED = (*RUN, "data.streaming=true", "data.shuffle_buffer=8")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_data(tmp_path)
    with inside(tmp_path):
        yield tmp_path


def test_a_stopped_run_goes_on_as_if_it_had_not_been(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight steps of eight pairs, of 40 that are gone through once and a half."""
    train(*STREAMED, "hydra.run.dir=whole")
    names(capsys.readouterr().out, "the first 256 rows", "64 training pairs of a stream", "reference=auto: frozen")
    stopped(*STREAMED, "hydra.run.dir=half")
    train("resume=half")
    whole, half = outcome(folder / "whole"), outcome(folder / "half")
    assert [name for name in whole if half[name] != whole[name]] == []
    assert whole["steps"] == 8
    train(*STREAMED, "seed=2", "hydra.run.dir=other")
    assert outcome(folder / "other")["rows"] != whole["rows"]


def test_files_that_changed_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told by their sizes: no row that is read before training has changed."""
    stopped(*STREAMED, "hydra.run.dir=stopped")
    (folder / "train.jsonl").write_text((folder / "train.jsonl").read_text() + "\n")
    said = refused(capsys, folder / "stopped/checkpoints", "resume=stopped", code=1)
    names(said, "the files of data.train changed", key="error: resume", value="stopped", remedy="start a new run")


def test_rows_left_out_are_listed_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Streamed or not, stopped or not."""
    lines = (folder / "train.jsonl").read_text().splitlines()
    bad = ['{"prompt": "w1"}', lines[0].replace('"chosen"', '"nothing"')]
    (folder / "train.jsonl").write_text("\n".join([*lines * 7, bad[0], *lines, bad[1], "{"]))
    keys = ("data.on_invalid=skip", "data.on_degenerate=keep", "callbacks.checkpoint.every=2")
    stream = ("data.streaming=true", "data.shuffle_buffer=1")
    for name, streamed in (("whole", ()), ("streamed", stream), ("stopped", stream)):
        command = (*RUN, *keys, *streamed, "trainer.max_steps=42", f"hydra.run.dir={name}")
        if name == "stopped":
            stopped(*command, after=75)  # behind the first of the bad rows, which is read again
            command = ("resume=stopped",)
        capsys.readouterr()
        train(*command)
        summary = json.loads((folder / name / "summary.json").read_text())
        listed = [json.loads(line) for line in (folder / name / "rejected_rows.jsonl").read_text().splitlines()]
        assert [row["origin"] for row in listed] == ["train.jsonl:281", "train.jsonl:322", "train.jsonl:323"]
        assert sum(summary["rejected_rows"].values()) == 3
        names(capsys.readouterr().out, "left out: 3 rows", f"{name}/rejected_rows.jsonl")


def test_the_order_of_the_stream_is_that_of_its_seed(folder: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train(*STREAMED, f"data.seed={seed}", "trainer.max_steps=2", f"hydra.run.dir={name}")
    rows = {name: outcome(folder / name)["rows"] for name in ("one", "same", "other")}
    assert rows["one"] == rows["same"] != rows["other"]
    assert rows["one"][0] == rows["other"][0], "before the first step"


def test_what_a_stream_cannot_have(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(*STREAMED, "trainer.max_steps=null", "hydra.run.dir=a", fails=1)
    names(capsys.readouterr().err, "trainer.max_steps", "data.streaming=true")
    train(*STREAMED, "reference=precomputed", "hydra.run.dir=b", fails=1)
    names(capsys.readouterr().err, "reference=precomputed", "reference=frozen")
    train(*STREAMED, "reference=precomputed", "loss=cpo", "trainer.max_steps=1", "hydra.run.dir=c")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_in_the_stream_stops_the_run_by_its_line(
    folder: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join([*lines * 8, '{"prompt": "w1"}', *lines]))
    keys = ("data.shuffle_buffer=1", f"data.num_workers={workers}", "trainer.max_steps=50")
    train(*STREAMED, *keys, "hydra.run.dir=bad", fails=1)
    names(capfd.readouterr().err, "train.jsonl:321", key="error: data.on_invalid=error", remedy="data.on_invalid=skip")
