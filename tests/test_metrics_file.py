"""metrics.csv: what is in it stays, whatever happens."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from caldpo.metrics_file import RowWriter, keep_rows, read_rows


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
    assert list(table.columns) == ["loss", "lr", "step", "val/loss"]
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
    with pytest.raises(ValueError, match="has 4 rows, 5 were written"):
        keep_rows(path, 5)
    with pytest.raises(ValueError, match="has 0 rows, 1 were written"):
        keep_rows(tmp_path / "none.csv", 1)
