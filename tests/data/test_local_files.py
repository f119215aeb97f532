"""Files of every kind give the same rows; bad lines cost themselves; bad files are named with what to do."""

from __future__ import annotations

import csv
import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from caldpo.data.columns import Columns
from caldpo.data.load import load_pairs
from caldpo.data.raw_row import PairSource, RawRow
from caldpo.data.sources import file_opening
from caldpo.data.sources.local_files import LocalFiles
from caldpo.errors import CaldpoError
from tests.helpers.messages import names, refused

STANDARD = [
    {
        "prompt": f"Q {i}?",
        "chosen": f'é {i}\nyes, "{i}"',
        "rejected": "no",
        "score_chosen": i + 0.5,
        "score_rejected": i,
    }
    for i in range(3)
]
CONVERSATIONS = [
    {
        "prompt": [{"role": "user", "content": f"Q, {i}?"}],
        "chosen": [{"role": "assistant", "content": f"“{i}”"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for i in range(3)
]


def write(path, rows):
    """Write rows by the ending of the file's name, with other code than the readers'."""
    name = path.name.removesuffix(".gz")
    opener = gzip.open if path.suffix == ".gz" else open
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif name.endswith(".csv"):
        with opener(path, "wt", encoding="utf-8", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(rows[0])
            writer.writerows([json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in rows)
    else:
        text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
        with opener(path, "wt", encoding="utf-8") as f:
            f.write(text)
    return path


def read(path):
    return list(LocalFiles().rows(str(path)))


def value(row):
    """Its cells, without those that are not given; scores as numbers, which csv holds as text."""
    cells = Columns().of_table(row.value) if row.table else row.value
    return {name: float(cell) if name.startswith("score") else cell for name, cell in cells.items()}


def test_local_files_is_a_source():
    assert isinstance(LocalFiles(), PairSource)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "json.gz", "parquet", "csv", "csv.gz"])
@pytest.mark.parametrize("rows", [STANDARD, CONVERSATIONS], ids=["standard", "conversations"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending, rows):
    found = read(write(tmp_path / f"pairs.{ending}", rows))
    assert [value(row) for row in found] == rows
    assert all(row.error is None for row in found)


def test_json_lines_under_the_name_json(tmp_path):
    path = write(tmp_path / "pairs.jsonl", STANDARD).rename(tmp_path / "pairs.json")
    assert [row.value for row in read(path)] == STANDARD


def test_origins_count_lines_from_one_and_rows_from_zero(tmp_path):
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_bytes(b'\n{"a": 1}\r\n \t\n{"a": 2}')
    assert [row.origin for row in read(jsonl)] == [f"{jsonl}:2", f"{jsonl}:4"]
    rows_csv = tmp_path / "a.csv"
    rows_csv.write_text('chosen,rejected\n"two\nlines",x\n\nnext,y\n')
    assert [row.origin for row in read(rows_csv)] == [f"{rows_csv}:2-3", f"{rows_csv}:5"]
    assert [row.origin for row in read(write(tmp_path / "a.parquet", STANDARD))][-1].endswith("a.parquet[2]")


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        (b'{"a": "\xff\xfe"}', ("UTF-8", "0xFF", 8)),
        (b'{"a": "\x00"}', ("not JSON", "control character")),
        (b'{"a": "\\u12G4"}', ("not JSON", "\\uXXXX", "column 9")),
        (b'{"a": ', ("not JSON", "column 6")),
        (b"[1, 2, 3]", ("JSON object", "list")),
        (b"null", ("JSON object", "null")),
        (b"true", ("JSON object", "boolean")),
        (b'"text"', ("JSON object", "text")),
        (b"1", ("JSON object", "number")),
        (b"[" * 100_000, ("not JSON", "nested")),
        (b'{"a": ' + b"1" * 5000 + b"}", ("not JSON", "limit")),
        ("\u2028".encode(), ("not JSON",)),
    ],
)
def test_a_bad_line_is_one_bad_row(tmp_path, line, facts):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = read(path)
    assert (first.value, last.value) == ({"a": 0}, {"a": 2})
    assert bad.value is None
    names(bad.error, *facts)
    assert bad.origin == f"{path}:2"


def test_legal_oddities_of_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "x\u2028y\x85"}\r\n{"b": "\\u0000"}\n'.encode())
    assert [row.value for row in read(path)] == [{"a": "x\u2028y\x85"}, {"b": "\x00"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_given_twice_is_an_error_that_keeps_the_row(tmp_path, name):
    path = tmp_path / name
    rows = ['{"a": 1, "b": {"c": 1, "c": 2}}', '{"a": [{"d": 1}, {"d": 2}]}']
    path.write_text("\n".join(rows) if name == "a.jsonl" else f"[{', '.join(rows)}]")
    twice, good = read(path)
    names(twice.error, "key", "'c'")
    assert twice.value is not None
    assert good.error is None


def test_a_line_over_the_limit_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(file_opening, "MAX_ROW", 20)
    path = tmp_path / "a.jsonl.gz"
    exact = b'{"a": "12345678901"}'
    assert len(exact) == 20
    lines = [exact[:-1], b'{"a": "' + b"x" * 3_000_000 + b'"}', b'{"a": 1}', b"y" * 21]
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    for row, too_long in zip(read(path)[1:], (True, False, True), strict=True):
        names(row.error, *["line", "too long", "0 MiB"] if too_long else ["None"])
    assert read(path)[2].origin.endswith(":3")


# how gzip, parquet, zip, zstandard, bzip2 and xz files begin, and UTF-16 and UTF-32 texts
NO_TEXT = (
    b"\x1f\x8b",
    b"PAR1",
    b"PK\3\4",
    b"\x28\xb5\x2f\xfd",
    b"BZh",
    b"\xfd7zXZ",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\0\0\xfe\xff",
)


@settings(deadline=None)  # files are written, and the machine may be busy
@given(st.binary(max_size=200).filter(lambda content: b"\0" not in content[:64] or content.startswith(NO_TEXT)))
@example(b'{"a": NaN}')
@example(b'{"a": 1e400}')
@example(b'{"\\ud800": 1}')
@example(b"\xef\xbb\xbf")
def test_any_bytes_give_rows_or_a_readable_error(tmp_path_factory, content):
    """And every row is one of the file's lines: none is split, joined or made up."""
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(content)
    if content.startswith(NO_TEXT):
        with refused(key=path) as caught:
            read(path)
        assert re.search(r"\b(gzip|parquet|zip|zstandard|bzip2|xz|UTF-(16|32))\b", caught.value.message)
        return
    if not any(line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r") for line in content.split(b"\n")):
        with refused("no rows", key=path):
            read(path)
        return
    rows = read(path)
    assert len(rows) <= content.count(b"\n") + 1
    for row in rows:
        assert isinstance(row, RawRow)
        assert isinstance(row.value, dict) or (row.value is None and row.error)


objects = st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none() | st.lists(st.text()), max_size=3)


@settings(deadline=None)
@given(st.lists(objects, min_size=1, max_size=5), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_json_lines_round_trip(tmp_path_factory, rows, newline, ascii_only):
    rows = json.loads(json.dumps(rows).encode("utf-8", "replace"))
    path = tmp_path_factory.mktemp("round") / "a.jsonl"
    path.write_bytes(newline.join(json.dumps(r, ensure_ascii=ascii_only) for r in rows).encode("utf-8", "replace"))
    assert [row.value for row in read(path)] == json.loads(json.dumps(rows, ensure_ascii=ascii_only))


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b'"a","b"\n"1')
@example(b"a,a\n1,2\n")
@example(b"a\r\x00\n")
def test_any_bytes_as_csv_give_rows_or_a_readable_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "a.csv"
    path.write_bytes(content)
    try:
        rows = read(path)
    except CaldpoError:
        return
    assert all(isinstance(row.value, dict) or row.error for row in rows)


def test_an_unclosed_quote_makes_each_of_its_lines_a_bad_row(tmp_path):
    """The rows that it swallows are named one by one, and the file goes on after them."""
    path = tmp_path / "a.csv"
    for text, bad, kept in (
        ('p,"a,b\nq,c,d\nr,"e",f\ns,g,h\n', [2, 3, 4], ["s"]),
        ('p,"a,b\nq,c,d\n', [2, 3], []),  # up to the end of the file
        ('p,"a,b\n\nq,c"\ns,g,h\n', [2, 3, 4], ["s"]),  # closed by chance, with too few cells
        ('p,a "quoted" word,b\nq,"a "quoted" word",b\ns,g,h\n', [3], ["p", "s"]),  # a line alone
    ):
        path.write_text("prompt,chosen,rejected\n" + text)
        pairs, report = load_pairs(LocalFiles(), str(path))
        assert [pair.prompt for pair in pairs] == kept
        assert [r.origin for r in report.rejections] == [f"{path}:{line}" for line in bad]
        assert ("quote" in report.rejections[0].reason) == (len(bad) > 1)
        for rejection in report.rejections[1:]:
            names(rejection.reason, "line 2")


def test_cells_over_several_lines_are_kept_and_noted(tmp_path):
    """Sound csv either way; where each line would be a row by itself, it may be a quote that closes by chance."""
    path = tmp_path / "a.csv"
    path.write_text('prompt,chosen,rejected\np,"one\ntwo",b\nq,"a,b\nr,c",d\ns,"x\ny",z\n')
    pairs, report = load_pairs(LocalFiles(), str(path))
    assert [pair.origin for pair in pairs] == [f"{path}:2-3", f"{path}:4-5", f"{path}:6-7"]
    assert [count for count, _ in report.odd.values()] == [2, 1]
    names(report.summary(), f"1 (first {path}:4-5)")


csv_lines = st.lists(
    st.sampled_from(["a,b,c", 'a,"b,c', 'a,"b",c', '"', "", 'a,b"', "x", '"a\r,b",c,d', ",,"]), max_size=8
)


@settings(deadline=None)
@given(csv_lines, st.sampled_from(["\n", "\r\n"]))
def test_each_line_of_a_csv_file_is_in_one_row_or_blank(tmp_path_factory, lines, newline):
    path = tmp_path_factory.mktemp("lines") / "a.csv"
    path.write_bytes((newline.join(["prompt,chosen,rejected", *lines]) + newline).encode())
    if not any(lines):
        with refused("no rows", key=path):
            load_pairs(LocalFiles(), str(path))
        return
    pairs, report = load_pairs(LocalFiles(), str(path), on_degenerate="keep")
    assert report.rows == len(pairs) + len(report.rejections)
    seen = []
    for origin in (x.origin for x in (*pairs, *report.rejections)):
        first, _, last = origin.rpartition(":")[2].partition("-")
        seen += range(int(first), int(last or first) + 1)
    physical = path.read_bytes().decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert len(seen) == len(set(seen))
    assert set(range(2, len(physical) + 1)) - set(seen) <= {n for n, text in enumerate(physical, 1) if not text}


def test_gzip_in_several_members_and_padded_with_zeros(tmp_path):
    """As cat and tape drives leave them: every row is read."""
    path = tmp_path / "a.jsonl.gz"
    whole = b"".join(gzip.compress(json.dumps(row).encode() + b"\n") for row in STANDARD)
    path.write_bytes(whole + bytes(64))
    assert [row.value for row in read(path)] == STANDARD


def test_csv_cells(tmp_path):
    """Empty cells are not given, scores are numbers, a bad row or byte costs its row alone."""
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfprompt,chosen,rejected,score_chosen,score_rejected\n"
        b"q,a,,1,2.5\n"
        b"q,a\n"
        b"q,\xff,b,,\n"
        b"q,a,b,high,low\n"
        b'q,"[1, 2]",b,,\n' + b"q," + b"x" * 200_000 + b",b,,\n"
    )
    rows = read(path)
    assert value(rows[0]) == {"prompt": "q", "chosen": "a", "score_chosen": 1.0, "score_rejected": 2.5}
    names(rows[1].error, "cells", "header", "2 of 5")
    assert rows[3].value["score_chosen"] == "high"
    assert rows[4].value["chosen"] == "[1, 2]"  # a list, but not of messages: text
    assert len(rows[5].value["chosen"]) == 200_000
    pairs, report = load_pairs(LocalFiles(), str(path))
    assert [p.chosen[:6] for p in pairs] == ["[1, 2]", "xxxxxx"]
    facts = [("`rejected`", "missing"), ("cells", "header"), ("UTF-8",), ("`score_chosen`", "number")]
    for rejection, expected in zip(report.rejections, facts, strict=True):
        names(rejection.category, *expected)
        assert "(" not in rejection.category, "what differs by row is left out"


def test_nulls_of_a_parquet_file_are_absent(tmp_path):
    """A table has every column in every row, so rows without scores have null there."""
    rows = [STANDARD[0], {"prompt": "q", "chosen": "a", "rejected": "b"}]
    pairs, report = load_pairs(LocalFiles(), str(write(tmp_path / "a.parquet", rows)))
    assert [p.has_scores for p in pairs] == [True, False]
    assert report.with_scores == 1


def test_missing_file_suggests_its_neighbours(tmp_path):
    write(tmp_path / "train_prefs.jsonl", STANDARD)
    (tmp_path / "notes.txt").write_text("no data")
    with refused("train_prefs.jsonl", key=tmp_path / "train_pref.jsonl"):  # for whoever asked to name its setting
        read(tmp_path / "train_pref.jsonl")
    with refused(tmp_path, "train_prefs.jsonl", key=tmp_path / "x.parquet"):
        read(tmp_path / "x.parquet")
    with refused(f"folder {tmp_path / 'nowhere'}", key=tmp_path / "nowhere" / "x.parquet"):
        read(tmp_path / "nowhere" / "x.parquet")


def test_folder_and_unknown_ending(tmp_path):
    with refused("folder", "empty", key=tmp_path, remedy=".jsonl, .jsonl.gz, .json, .json.gz, .parquet, .csv, .csv.gz"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with refused(".jsonl, .jsonl.gz, .json, .json.gz, .parquet, .csv, .csv.gz", key=tmp_path / "a.txt"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.json"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_file_without_rows(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with refused("no rows", key=path):
        read(path)


def test_damaged_files(tmp_path):
    whole = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in STANDARD * 50))
    truncated = tmp_path / "a.jsonl.gz"
    truncated.write_bytes(whole[: len(whole) // 2])
    with refused("gzip", "end-of-stream", key=truncated, remedy="gzip -t"):
        read(truncated)
    truncated.write_bytes(b"no gzip at all")
    with refused("gzip", "b'no'", key=truncated, remedy="gzip -t"):
        read(truncated)
    for name, kind in (("a.parquet", "parquet file"), ("a.json", "JSON list")):
        (tmp_path / name).write_bytes(b'[{"a": 1},')
        with refused(kind, key=tmp_path / name, remedy="file" if name == "a.json" else "download"):
            read(tmp_path / name)
    (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
    with refused("header", "column", "'a'", key=tmp_path / "a.csv"):
        read(tmp_path / "a.csv")
