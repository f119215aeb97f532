"""Whatever a data file holds: a CaldpoError, or an account of every row; and the same the next time."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

from caldpo.data.data_report import LoadReport
from caldpo.data.load import load_pairs, refuse_bad_rows, require_pairs
from caldpo.data.pair import PreferencePair
from caldpo.data.rejected_rows import write_rejections
from caldpo.data.sources import file_opening, json_rows
from caldpo.data.sources.file_checks import ENDINGS
from caldpo.data.sources.local_files import LocalFiles
from caldpo.errors import CaldpoError
from tests.fuzz.effort import fuzz
from tests.fuzz.values import good_rows, mutated, mutations, of_tables, rows

pytestmark = pytest.mark.slow

LONGEST = 600  # characters of a reason: it is shown, listed and counted by
policies = st.fixed_dictionaries(
    {
        "on_degenerate": st.sampled_from(["drop", "keep"]),
        "on_reversed_scores": st.sampled_from(["reject", "swap", "keep"]),
    }
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all inputs."""
    return tmp_path_factory.mktemp("fuzz")


def outcome(path: Path, keys: dict[str, Any]) -> tuple[list[PreferencePair], LoadReport] | str:
    """What loading gives; the message where it is refused."""
    try:
        pairs, report = load_pairs(LocalFiles(), str(path), **keys)
        return list(pairs), report
    except CaldpoError as error:
        return str(error)


def check(path: Path, content: bytes, keys: dict[str, Any]) -> None:
    """The properties of loading ``content`` from ``path``."""
    path.write_bytes(content)
    first = outcome(path, keys)
    assert repr(outcome(path, keys)) == repr(first)  # repr, because NaN is not equal to itself
    if isinstance(first, str):
        assert path.name in first
        first.encode()
        return
    pairs, report = first
    assert report.rows == report.kept + len(report.rejections)
    assert report.kept == len(pairs) == sum(report.formats.values())
    assert all(rejection.reason and len(rejection.reason) < LONGEST for rejection in report.rejections)
    listed = path.with_name("rejected.jsonl")
    write_rejections([report], listed)
    assert [json.loads(line)["reason"] for line in listed.read_text().splitlines()] == [
        rejection.reason for rejection in report.rejections
    ]
    report.summary().encode()
    for pair in pairs:
        json.dumps([pair.prompt, pair.chosen, pair.rejected], ensure_ascii=False).encode()
    for refuse in (lambda: refuse_bad_rows([report], listed), lambda: require_pairs(report)):
        try:
            refuse()
        except CaldpoError as error:
            str(error).encode()


def written(ending: str, rows_of_file: list[dict[str, Any]], *, as_ascii: bool) -> bytes | None:
    """The rows as a file of this kind, None where such a file cannot hold them."""
    kind = ending.removesuffix(".gz")
    if kind == ".parquet":
        sink = io.BytesIO()
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of_file), sink, row_group_size=2)
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, NotImplementedError):
            return None
        return sink.getvalue()
    if kind == ".csv":
        header = list(dict.fromkeys(name for row in rows_of_file for name in row))
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        try:
            writer.writerow(header)
            for row in rows_of_file:
                cells = (row.get(name) for name in header)
                writer.writerow([json.dumps(c) if isinstance(c, list | dict) else c for c in cells])
        except (csv.Error, ValueError, TypeError):
            return None
        return text.getvalue().encode("utf-8", "surrogatepass")
    try:
        lines = [json.dumps(row, ensure_ascii=as_ascii) for row in rows_of_file]
    except (TypeError, ValueError):
        return None
    content = f"[{','.join(lines)}]" if kind == ".json" else "\n".join(lines)
    return content.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("ending", ENDINGS)
@fuzz(60, content=st.binary(max_size=300), wrapped=st.booleans(), keys=policies)
def test_any_bytes(ending: str, content: bytes, wrapped: bool, keys: dict[str, Any], place: Path) -> None:
    if wrapped and ending.endswith(".gz"):
        content = gzip.compress(content)
    check(place / f"a{ending}", content, keys)


@pytest.mark.parametrize("ending", ENDINGS)
@fuzz(
    60,
    good=st.lists(good_rows, min_size=1, max_size=6),
    inside=mutations,
    outside=mutations,
    keys=policies,
    longest=st.sampled_from([2**24, 64]),
    block=st.sampled_from([2**20, 1, 17]),
)
def test_damaged_copies_of_good_files(
    ending: str, good: Any, inside: Any, outside: Any, keys: dict[str, Any], longest: int, block: int, place: Path
) -> None:
    content = written(ending, good, as_ascii=False)
    assert content is not None
    content = mutated(content, inside)
    if ending.endswith(".gz"):
        content = mutated(gzip.compress(content, compresslevel=1, mtime=0), outside)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_opening, "MAX_ROW", longest)
        patch.setattr(json_rows, "_BLOCK", block)
        check(place / f"a{ending}", content, keys)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
@fuzz(80, odd=st.lists(rows, min_size=1, max_size=4), as_ascii=st.booleans(), keys=policies)
def test_rows_that_hold_anything(ending: str, odd: Any, as_ascii: bool, keys: dict[str, Any], place: Path) -> None:
    content = written(ending, odd, as_ascii=as_ascii)
    if content is not None:
        check(place / f"a{ending}", content, keys)


@fuzz(120, column=st.lists(of_tables, min_size=1, max_size=4), name=st.sampled_from(["chosen", "info", "score_chosen"]))
def test_columns_of_any_type(column: Any, name: str, place: Path) -> None:
    table = [{"prompt": "p", "chosen": "a", "rejected": "b", name: value} for value in column]
    content = written(".parquet", table, as_ascii=True)
    if content is not None:
        check(place / "a.parquet", content, {})
