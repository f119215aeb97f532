"""metrics.csv: what is in it stays, whatever happens."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from caldpo.metrics_file import FirstRows, RowWriter, count_rows, iter_rows, keep_rows, read_rows
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
    assert list(keep_rows(path, 0)) == []
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


def test_first_rows_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    written(path, *ROWS)
    whole, first = read_rows(path), FirstRows(path, 3)
    assert list(iter_rows(path)) == whole
    assert list(first) == list(first) == whole[:3]
    assert len(first) == 3
    assert count_rows(path) == len(whole) == 4
    keep_rows(path, 3)
    written(path, (5, {"another": 1.0}))
    assert [row["step"] for row in first] == ["0", "0", "1"]
    assert list(FirstRows(tmp_path / "none.csv", 0)) == []


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_what_follows_the_last_line_feed_is_no_row(tmp_path: Path, ends: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(f"step,loss{ends}0,0.5{ends}1,0.25\r2,0.125".encode())
    assert read_rows(path) == [{"step": "0", "loss": "0.5"}]


HIGHEST = """
import re, sys
from pathlib import Path
from caldpo.metrics_file import RowWriter, count_rows, keep_rows

def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

path = Path(sys.argv[1])
before = highest()
count = count_rows(path)
keep_rows(path, count - 1)
RowWriter(path).write({"another": 1.0}, count)
print(count, highest() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs the peak memory that Linux tells")
def test_a_long_file_is_counted_cut_and_rewritten_within_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", *(f"metric{i}" for i in range(20))])
        table.writerows([step, *(step / (i + 3) for i in range(20))] for step in range(30_000))
    answer = subprocess.run([sys.executable, "-c", HIGHEST, str(path)], check=True, capture_output=True, text=True)
    count, kib = map(int, answer.stdout.split())
    assert count == 30_000
    assert kib < path.stat().st_size / 1024 / 2
    rows = read_rows(path)
    assert len(rows) == 30_000
    assert (rows[-1]["step"], rows[-1]["another"], rows[7]["metric0"]) == ("30000", "1.0", repr(7 / 3))
