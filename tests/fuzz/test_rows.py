"""Whatever a row holds: a pair of usable text, or a RowError with a short reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import strategies as st

from caldpo.data.columns import Columns
from caldpo.data.formats import detect, formats, require_columns
from caldpo.data.load import load_pairs
from caldpo.data.pair import prompt_key
from caldpo.data.raw_row import PairSource, RawRow, RowError
from caldpo.data.split import settle_shared_prompts, split_by_prompt
from caldpo.errors import CaldpoError
from tests.fuzz.effort import fuzz
from tests.fuzz.values import columns, of_tables, rows, texts

pytestmark = pytest.mark.slow


class Given(PairSource):
    """A source of rows that are already in memory."""

    name = "given"

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def rows(self, split: str) -> Any:
        return (RawRow(f"{split}[{i}]", value) for i, value in enumerate(self.values))


def read(row: Any) -> Any:
    """The pair in a row, or the reason why there is none."""
    try:
        return formats()[detect(row)].parse(row)
    except RowError as error:
        return error.reason


# every column there is, each of them right in most rows
wide = st.fixed_dictionaries({}, optional={name: values | of_tables for name, values in columns.items()})


@fuzz(800, row=rows | wide)
def test_any_row(row: Any) -> None:
    before = repr(row)
    found = read(row)
    assert repr(row) == before
    assert repr(read(copy.deepcopy(row))) == repr(found)
    if isinstance(found, str):
        assert 0 < len(found) < 800
        found.encode()


@fuzz(150, values=st.lists(rows | wide | of_tables, max_size=8), fraction=st.floats(), seed=st.integers())
def test_every_row_is_accounted_for_and_no_prompt_is_in_two_splits(values: Any, fraction: float, seed: int) -> None:
    pairs, report = load_pairs(Given(values), "train")
    assert report.rows == len(values)
    assert report.rows - report.ranked_rows + report.ranked_pairs == len(pairs) + len(report.rejections)
    try:
        train, test = split_by_prompt(pairs, fraction, seed)
    except CaldpoError:
        return
    assert len(train) + len(test) == len(pairs)
    assert not {prompt_key(p.prompt) for p in train} & {prompt_key(p.prompt) for p in test}
    kept, dropped = settle_shared_prompts([*train, *test], test, "drop_train")
    assert kept == train
    assert len(dropped) == len(test)


@fuzz(150, names=st.lists(texts | st.sampled_from(list(columns)), max_size=20))
def test_any_header(names: list[str]) -> None:
    try:
        require_columns(names, "a.csv", Columns())
    except CaldpoError as error:
        said = str(error)
    else:
        said = ""
    said.encode()
    assert len(said) < 3000
