"""Files that are not what they seem: other encodings and kinds, rows larger than memory, tables without the columns."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from caldpo.data import load
from caldpo.data.data_report import LoadReport
from caldpo.data.load import load_pairs, require_pairs
from caldpo.data.sources import file_opening
from caldpo.data.sources.file_checks import ENDINGS
from caldpo.data.sources.hub_dataset import HubDataset
from caldpo.data.sources.local_files import READERS, LocalFiles
from caldpo.utils.digests import full_folder_digest
from tests.data.prepared import prepared
from tests.helpers.messages import names, refused

ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}
LINE = json.dumps(ROW).encode()


def read(path):
    return list(LocalFiles().rows(str(path)))


def test_every_kind_of_file_has_its_reader():
    assert tuple(READERS) == ENDINGS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named_once(tmp_path, name, encoding):
    """Every line of such a file would be unreadable; and with UTF-16's line ends, every second one a false one."""
    content, kind = (f"{LINE.decode()}\n" * 5).encode(encoding), encoding[:6].upper()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with refused("UTF-8", key=tmp_path / name, value=kind, remedy=f"iconv -f {kind} -t UTF-8 FILE > NEW"):
        read(tmp_path / name)


def test_latin_text_is_shown_as_it_reads_in_windows_1252(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINE + b'\n{"prompt": "un caf\xe9 noir"}\n')
    names(read(tmp_path / "a.jsonl")[1].error, "UTF-8", "0xE9", 19, "café", "Windows-1252")
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\nun caf\xe9,a,b\nq,a,b\n")
    bad, good = read(tmp_path / "a.csv")
    names(bad.error, "UTF-8", "0xE9")
    assert good.error is None


@pytest.mark.parametrize(
    ("name", "content", "kind", "remedy"),
    [
        ("a.jsonl", gzip.compress(LINE, mtime=0), "gzip", ".gz"),
        ("a.csv", b"PAR1....", "parquet", ".parquet"),
        ("a.json", b"PK\x03\x04....", "zip", "decompress"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(LINE, mtime=0), mtime=0), "gzip", None),
    ],
)
def test_another_kind_than_the_name_says(tmp_path, name, content, kind, remedy):
    (tmp_path / name).write_bytes(content)
    with refused(f"{kind} data", key=tmp_path / name, remedy=remedy):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_a_small_file_cannot_fill_the_memory(tmp_path, name, monkeypatch):
    """A line without end: read in pieces, and refused once it is out of all proportion to the file."""
    monkeypatch.setattr(file_opening, "MAX_ROW", 2**20)
    monkeypatch.setattr(file_opening, "_ALWAYS_ALLOWED", 2**24)
    beginning = {"a.jsonl.gz": b'{"a": "', "a.csv.gz": b'chosen,rejected\n"', "a.json.gz": b'[{"a": "'}[name]
    (tmp_path / name).write_bytes(gzip.compress(beginning + b"x" * 2**26))
    assert (tmp_path / name).stat().st_size < 100_000
    tracemalloc.start()
    with refused("too long" if name == "a.json.gz" else "200 times") as caught:
        read(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 2**24  # a quarter of what it expands to
    tracemalloc.stop()
    assert str(tmp_path / name) in caught.value.key


def test_well_compressed_pairs_are_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(file_opening, "_ALWAYS_ALLOWED", 1000)
    rows = [{**ROW, "prompt": f"question {i} of the same kind"} for i in range(300)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [row.value for row in read(tmp_path / "a.jsonl.gz")] == rows


def test_a_list_is_read_item_by_item(tmp_path, monkeypatch):
    """Whatever stands at the end of a block: numbers, escapes, half a character."""
    rows = [{**ROW, "score_chosen": 1234567.25 + i, "note": ['é\u2028\\"]},{[', None, -1e-3]} for i in range(20)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    for block in (1, 2, 7, 64):
        monkeypatch.setattr("caldpo.data.sources.json_rows._BLOCK", block)
        assert [row.value for row in read(path)] == rows
    path.write_text("[ ]")
    with refused("no rows", key=path):
        read(path)


def test_a_fault_in_a_long_list_is_not_taken_for_a_long_row(tmp_path, monkeypatch):
    """The end of a faulty row is never found, however much is read on."""
    monkeypatch.setattr(file_opening, "MAX_ROW", 1000)
    monkeypatch.setattr("caldpo.data.sources.json_rows._BLOCK", 100)
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 2 "b": 3}' + ', {"a": 4}' * 1000 + "]")
    with refused("','", "row 0", key=tmp_path / "a.json", remedy=".jsonl"):
        read(tmp_path / "a.json")


def test_a_row_of_many_keys_takes_no_time(tmp_path):
    keys = ", ".join(f'"k{i}": 0' for i in range(100_000))
    (tmp_path / "a.jsonl").write_text(f'{{{keys}, "k99999": 1}}\n')
    started = time.process_time()
    (row,) = read(tmp_path / "a.jsonl")
    names(row.error, "key", "'k99999'")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "row", "fact"),
    [
        ('[{"a": 1}', 0, "ends"),
        ('[{"a": 1},', 0, "ends"),
        ('[{"a": 1}, {"a": }]', 0, "Expecting value"),
        ('[{"a": 1} {"a": 2}]', 0, "']'"),
        ('[{"a": 1}, {"a": 2},]', 1, "Expecting value"),
        ('[{"a": 1}] []', 0, "follows"),
        ("[" * 100_000, 0, "nested"),
        ('[{"a": "' + "x" * 3000 + '"}]', 0, "too long"),
    ],
)
def test_a_faulty_list_says_where(tmp_path, text, row, fact, monkeypatch):
    monkeypatch.setattr(file_opening, "MAX_ROW", 2000 if fact == "too long" else 2**24)
    monkeypatch.setattr("caldpo.data.sources.json_rows._BLOCK", 100)
    (tmp_path / "a.json").write_text(text)
    with refused("JSON", f"row {row}", fact, key=tmp_path / "a.json", remedy=".jsonl"):
        read(tmp_path / "a.json")


def test_a_row_over_the_limit_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(file_opening, "MAX_ROW", 1000)
    rows = [ROW, {**ROW, "chosen": "x" * 2000}, {**ROW, "prompt": "q"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    header = "prompt,chosen,rejected\n"
    (tmp_path / "a.csv").write_text(header + "".join(",".join(row.values()) + "\n" for row in rows))
    for name in ("a.parquet", "a.csv"):
        found = read(tmp_path / name)
        assert [row.value for row in found] == [rows[0], None, rows[2]]
        names(found[1].error, "row too long", "0 MiB")
    # a quote that is never closed: where the row ends, and whether the next ones are rows, nobody can tell
    (tmp_path / "b.csv").write_text(f'{header}p,a,b\np,"x,b\n' + "q,a,b\n" * 200)
    with refused("row too long", "quote", key=f"{tmp_path / 'b.csv'}:3"):
        read(tmp_path / "b.csv")


def test_text_in_parquet_that_is_not_utf8_is_a_bad_row(tmp_path):
    chosen = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xff\xfe")]
    )
    table = pyarrow.table({"prompt": ["p", "q"], "chosen": chosen, "rejected": ["b", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    good, bad = read(tmp_path / "a.parquet")
    assert good.value == ROW
    assert bad.value is None
    names(bad.error, "UTF-8")


def test_a_table_without_the_columns_is_one_error(tmp_path):
    """Not one for each of its rows: which are missing, and what each format needs."""
    rows = [{"prompt": "p", "Chosen": "a", "text": "b"}] * 3
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    (tmp_path / "a.csv").write_text("prompt,Chosen,text\np,a,b\n")
    for attempt in (
        lambda: load_pairs(LocalFiles(), str(tmp_path / "train.parquet")),
        lambda: load_pairs(LocalFiles(), str(tmp_path / "a.csv")),
        lambda: load_pairs(HubDataset(str(tmp_path)), "train"),
    ):
        with refused("prompt, Chosen, text", remedy=("data.columns.prompt=", "data.columns.chosen=")) as caught:
            attempt()
        lines = {name: line for line in caught.value.message.splitlines() for name in line.split(":")[0].split(", ")}
        names(lines["ultrafeedback"], "trl_standard", "chosen, rejected", "`chosen`", "'Chosen'", "`rejected`")
        names(lines["    tldr"], "info, summaries, choice", "`info`, `summaries`, `choice`")


def test_an_empty_split(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]), tmp_path / "train.parquet")
    for attempt in (
        lambda: HubDataset(str(tmp_path)).rows("train[:0]"),
        lambda: require_pairs(LoadReport("train[:0]")),
    ):
        with refused("no rows", key="train[:0]", remedy="split"):  # a key for whoever asked to name its setting
            attempt()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]).slice(0, 0), tmp_path / "train.parquet")
    with refused("no rows", key=tmp_path / "train.parquet"):
        read(tmp_path / "train.parquet")


def test_two_columns_of_one_name(tmp_path):
    table = pyarrow.table([["p"], ["a"], ["c"]], names=["chosen", "rejected", "chosen"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with refused("columns", "name", key=tmp_path / "a.parquet", remedy="rename"):
        read(tmp_path / "a.parquet")


def test_endless_bad_rows_stop_before_the_report_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "MAX_REJECTIONS", 50)
    (tmp_path / "a.jsonl").write_bytes(LINE + b"\n" + b"1\n" * 1000)
    with refused(50, 52, "JSON object", key=tmp_path / "a.jsonl"):
        load_pairs(LocalFiles(), str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("name", ["x" * 5000 + ".jsonl", "~nobody-of-this-name/a.jsonl", "a\0.jsonl"])
def test_an_invalid_name_is_a_missing_file(name):
    with refused("no such file", key=name):
        LocalFiles().rows(name)


def test_a_changed_folder_is_read_again_whatever_its_times(tmp_path):
    file = tmp_path / "train.jsonl"
    seen = []
    for chosen in ("a", "c"):  # of the same size
        file.write_text(json.dumps({**ROW, "chosen": chosen}) + "\n")
        os.utime(file, (1e9, 1e9))
        seen.append(
            ([row.value["chosen"] for row in HubDataset(str(tmp_path)).rows("train")], full_folder_digest(tmp_path))
        )
    (first, before), (second, after) = seen
    assert (first, second) == (["a"], ["c"])
    assert before != after


def test_changed_pairs_are_tokenised_again(tmp_path, capsys):
    """A file of the same name, size and time, whose rows are others; and the first ones again."""
    file, seen = tmp_path / "train.jsonl", []
    for last in "bcb":
        rows = [{"prompt": f"{w} a ?", "chosen": f"yes {w}", "rejected": f"no {last}"} for w in "defghijk"]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(file, (1e9, 1e9))
        keys = {"source": LocalFiles(), "train": str(file), "test": None, "test_fraction": 0.3}
        module, _ = prepared(tmp_path, cache=str(tmp_path / "cache"), **keys)
        seen.append((module.train_pairs[0].rejected_ids, capsys.readouterr().out))
    (first, _), (second, anew), (third, again) = seen
    assert first == third != second
    assert ".safetensors" not in anew
    assert any(line.startswith("train:") and ".safetensors" in line for line in again.splitlines())


def test_one_object_around_the_rows_is_named_with_a_remedy(tmp_path):
    """Over several lines: each of them would be a bad row."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [ROW]}, indent=1))
    with refused("one object", "list", key=path, remedy="jq .data"):
        read(path)
