"""metrics.csv: what is in it stays, whatever happens."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas
import pytest

from caldpo.metrics_file import RowWriter, keep_rows, read_rows
from tests.helpers.messages import refused


def written(path: Path, *rows: tuple[int, dict[str, float]]) -> None:
    writer = RowWriter(path)
    for step, metrics in rows:
        writer.write(metrics, step)


ROWS = (
    (0, {"val/loss": 1.5}),
    (0, {"loss": 2.0, "lr": 1e-7}),
    (1, {"loss": 0.1 + 0.2, "lr": 1e-7}),
    (2, {"val/loss": 0.5}),
)


def test_a_column_per_name_and_every_digit_of_a_value(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    written(path, *ROWS)
    table = pandas.read_csv(path, float_precision="round_trip")
    assert list(table.columns) == ["step", "loss", "lr", "val/loss"]  # what a row is of comes first
    assert table["step"].tolist() == [0, 0, 1, 2]
    assert table["loss"].dropna().tolist() == [2.0, 0.1 + 0.2]
    assert table["val/loss"].dropna().tolist() == [1.5, 0.5]


def test_a_second_writer_goes_on_where_the_first_one_stopped(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole.csv", tmp_path / "halves.csv"
    written(whole, *ROWS)
    for row in ROWS:
        written(halves, row)
    assert halves.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_last_row_that_was_cut_short_is_none(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    written(path, *ROWS)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [row["step"] for row in read_rows(path)] == ["0", "0", "1"]


def test_rows_that_are_cut_off_can_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    written(path, *ROWS)
    whole = path.read_bytes()
    assert [row["step"] for row in keep_rows(path, 2)] == ["0", "0"]
    assert len(read_rows(path)) == 2
    written(path, *ROWS[2:])
    assert path.read_bytes() == whole
    assert keep_rows(path, 0) == []
    assert not path.exists()


def test_lost_rows_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    written(path, *ROWS)
    with refused("4 rows", 5, key=path):
        keep_rows(path, 5)
    with refused("0 rows", 1, key=tmp_path / "none.csv"):
        keep_rows(tmp_path / "none.csv", 1)


DAMAGES = {
    "a field without end": '"' + "0" * 200_000,
    "zeros, as a power cut leaves them": "\0" * 700,
    "a cell too many": ",,1,,",
    "a cell too few": ",,1",
    "no number": ",,1,half",
    "no step": "0.5,,,",
    "a fraction of a step": ",,1.5,",
    "an empty line": "",
}


@pytest.mark.parametrize("what", DAMAGES)
def test_rows_end_where_damage_begins(tmp_path: Path, what: str) -> None:
    path = tmp_path / "metrics.csv"
    written(path, *ROWS)
    lines = path.read_text().splitlines()
    content = "".join(f"{line}\r\n" for line in (*lines[:3], DAMAGES[what], *lines[3:]))
    path.write_bytes(content.encode())
    assert [row["step"] for row in read_rows(path)] == ["0", "0"]
    with refused("2 rows", 3, key=path) as lost:
        keep_rows(path, 3)
    assert re.search(r"line [4-6]\b", str(lost.value))
    with refused(key=path) as damaged:  # written anew it would lose the rows after the damage
        written(path, (3, {"another": 1.0}))
    assert re.search(r"line [4-6]\b", str(damaged.value))
    assert path.read_bytes() == content.encode()
    assert len(keep_rows(path, 2)) == 2
    written(path, (1, {"loss": 1.0}), (3, {"another": 1.0}))
    assert [row["step"] for row in read_rows(path)] == ["0", "0", "1", "3"]


@pytest.mark.parametrize("header", ["", "loss,lr", "step,loss,step"])
def test_a_table_without_a_column_of_steps_has_no_rows(tmp_path: Path, header: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"{header}\n1,2,1\n")
    assert read_rows(path) == []
    with refused("line 1", key=path):
        written(path, (0, {"loss": 1.0}))


def test_a_disk_that_fills_up_leaves_no_half_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    written(path, *ROWS)
    whole, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[: len(content) // 2]))
    with refused("No space left on device", kind=OSError):
        written(path, (3, {"loss": 1.25}))
    assert path.read_bytes() == whole
