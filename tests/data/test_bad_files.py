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
from caldpo.data.load import LoadReport, load_pairs, require_pairs
from caldpo.data.sources import _file_open as _open
from caldpo.data.sources._file_names import ENDINGS, folder_digest
from caldpo.data.sources.hub_dataset import HubDataset
from caldpo.data.sources.local_files import READERS, LocalFiles
from caldpo.errors import CaldpoError
from tests.data.prepared import prepared

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
    content = (f"{LINE.decode()}\n" * 5).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(CaldpoError, match=f"is text in {encoding[:6].upper()}, where UTF-8 is expected") as caught:
        read(tmp_path / name)
    assert "iconv" in caught.value.remedy


def test_latin_text_is_shown_as_it_reads_in_windows_1252(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINE + b'\n{"prompt": "un caf\xe9 noir"}\n')
    assert read(tmp_path / "a.jsonl")[1].error == "not UTF-8 (byte 0xE9 at 19; 'café' in Windows-1252)"
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\nun caf\xe9,a,b\nq,a,b\n")
    assert [row.error for row in read(tmp_path / "a.csv")] == ["not UTF-8 (byte 0xE9)", None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", gzip.compress(LINE, mtime=0), r"is gzip data.*\n.*name end in \.gz"),
        ("a.csv", b"PAR1....", r"is parquet data.*\n.*name end in \.parquet"),
        ("a.json", b"PK\x03\x04....", r"is zip data.*\n.*decompress"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(LINE, mtime=0), mtime=0), "is gzip data"),
    ],
)
def test_another_kind_than_the_name_says(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CaldpoError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_a_small_file_cannot_fill_the_memory(tmp_path, name, monkeypatch):
    """A line without end: read in pieces, and refused once it is out of all proportion to the file."""
    monkeypatch.setattr(_open, "MAX_ROW", 2**20)
    monkeypatch.setattr(_open, "_INNOCENT", 2**24)
    beginning = {"a.jsonl.gz": b'{"a": "', "a.csv.gz": b'chosen,rejected\n"', "a.json.gz": b'[{"a": "'}[name]
    (tmp_path / name).write_bytes(gzip.compress(beginning + b"x" * 2**26))
    assert (tmp_path / name).stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(CaldpoError, match=r"expands to more than 200 times|a row too long"):
        read(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 2**24  # a quarter of what it expands to
    tracemalloc.stop()


def test_well_compressed_pairs_are_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(_open, "_INNOCENT", 1000)
    rows = [{**ROW, "prompt": f"question {i} of the same kind"} for i in range(300)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [row.value for row in read(tmp_path / "a.jsonl.gz")] == rows


def test_a_list_is_read_item_by_item(tmp_path, monkeypatch):
    """Whatever stands at the end of a block: numbers, escapes, half a character."""
    rows = [{**ROW, "score_chosen": 1234567.25 + i, "note": ['é\u2028\\"]},{[', None, -1e-3]} for i in range(20)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    for block in (1, 2, 7, 64):
        monkeypatch.setattr("caldpo.data.sources._json_rows._BLOCK", block)
        assert [row.value for row in read(path)] == rows
    path.write_text("[ ]")
    with pytest.raises(CaldpoError, match="no rows"):
        read(path)


def test_a_fault_in_a_long_list_is_not_taken_for_a_long_row(tmp_path, monkeypatch):
    """The end of a faulty row is never found, however much is read on."""
    monkeypatch.setattr(_open, "MAX_ROW", 1000)
    monkeypatch.setattr("caldpo.data.sources._json_rows._BLOCK", 100)
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a": 2 "b": 3}' + ', {"a": 4}' * 1000 + "]")
    with pytest.raises(CaldpoError, match=r"Expecting ',' delimiter, in or after row 0"):
        read(tmp_path / "a.json")


def test_a_row_of_many_keys_takes_no_time(tmp_path):
    keys = ", ".join(f'"k{i}": 0' for i in range(100_000))
    (tmp_path / "a.jsonl").write_text(f'{{{keys}, "k99999": 1}}\n')
    started = time.process_time()
    (row,) = read(tmp_path / "a.jsonl")
    assert row.error == "a key stands twice in an object ('k99999')"
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}', "it ends too early, in or after row 0"),
        ('[{"a": 1},', "it ends too early, in or after row 0"),
        ('[{"a": 1}, {"a": }]', "Expecting value, in or after row 0"),
        ('[{"a": 1} {"a": 2}]', "Expecting ']', in or after row 0"),
        ('[{"a": 1}, {"a": 2},]', "Expecting value, in or after row 1"),
        ('[{"a": 1}] []', "something follows the list"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"a": "' + "x" * 3000 + '"}]', "a row too long"),
    ],
)
def test_a_faulty_list_says_where(tmp_path, text, message, monkeypatch):
    monkeypatch.setattr(_open, "MAX_ROW", 2000 if "too long" in message else 2**24)
    monkeypatch.setattr("caldpo.data.sources._json_rows._BLOCK", 100)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CaldpoError, match="no JSON list of rows") as caught:
        read(tmp_path / "a.json")
    assert message in str(caught.value)


def test_a_row_too_long_costs_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(_open, "MAX_ROW", 1000)
    rows = [ROW, {**ROW, "chosen": "x" * 2000}, {**ROW, "prompt": "q"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    header = "prompt,chosen,rejected\n"
    (tmp_path / "a.csv").write_text(header + "".join(",".join(row.values()) + "\n" for row in rows))
    for name in ("a.parquet", "a.csv"):
        found = read(tmp_path / name)
        assert [row.value for row in found] == [rows[0], None, rows[2]]
        assert found[1].error == "row too long (over 0 MiB)"
    # a quote that is never closed: where the row ends, and whether the next ones are rows, nobody can tell
    (tmp_path / "b.csv").write_text(f'{header}p,a,b\np,"x,b\n' + "q,a,b\n" * 200)
    with pytest.raises(CaldpoError, match=r"b\.csv:3: a row too long .* quote that is never closed"):
        read(tmp_path / "b.csv")


def test_text_in_parquet_that_is_not_utf8_costs_its_row(tmp_path):
    chosen = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xff\xfe")]
    )
    table = pyarrow.table({"prompt": ["p", "q"], "chosen": chosen, "rejected": ["b", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    good, bad = read(tmp_path / "a.parquet")
    assert good.value == ROW
    assert bad.value is None
    assert bad.error.startswith("not UTF-8 (")


def test_a_table_without_the_columns_is_one_mistake(tmp_path):
    """Not one for each of its rows: which are missing, and what each format needs."""
    rows = [{"prompt": "p", "Chosen": "a", "text": "b"}] * 3
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    (tmp_path / "a.csv").write_text("prompt,Chosen,text\np,a,b\n")
    for attempt in (
        lambda: read(tmp_path / "train.parquet"),
        lambda: read(tmp_path / "a.csv"),
        lambda: list(HubDataset(str(tmp_path)).rows("train")),
    ):
        with pytest.raises(CaldpoError, match=r"columns \(prompt, Chosen, text\)") as caught:
            attempt()
        said = str(caught.value)
        assert "trl_standard, ultrafeedback: chosen, rejected; missing `chosen` (there is 'Chosen'), `rejected`" in said
        assert "tldr: info, summaries, choice; missing `info`, `summaries`, `choice`" in said


def test_an_empty_split(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]), tmp_path / "train.parquet")
    for attempt in (
        lambda: HubDataset(str(tmp_path)).rows("train[:0]"),
        lambda: require_pairs(LoadReport("train[:0]")),
    ):
        with pytest.raises(CaldpoError, match="the split has no rows") as caught:
            attempt()
        assert caught.value.key == "train[:0]"  # for whoever asked to name its setting
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]).slice(0, 0), tmp_path / "train.parquet")
    with pytest.raises(CaldpoError, match="the file has no rows"):
        read(tmp_path / "train.parquet")


def test_two_columns_of_one_name(tmp_path):
    table = pyarrow.table([["p"], ["a"], ["c"]], names=["chosen", "rejected", "chosen"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(CaldpoError, match="two columns of one name"):
        read(tmp_path / "a.parquet")


def test_rows_without_end_stop_before_their_account_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "MAX_REJECTIONS", 50)
    (tmp_path / "a.jsonl").write_bytes(LINE + b"\n" + b"1\n" * 1000)
    with pytest.raises(CaldpoError, match=r"50 of the first 52 rows are of no use \(50 not a JSON object\)"):
        load_pairs(LocalFiles(), str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("name", ["x" * 5000 + ".jsonl", "~nobody-of-this-name/a.jsonl", "a\0.jsonl"])
def test_what_cannot_be_a_name_is_a_missing_file(name):
    with pytest.raises(CaldpoError, match="no such file"):
        LocalFiles().rows(name)


def test_a_folder_that_changed_is_read_anew_whatever_its_times_say(tmp_path):
    file = tmp_path / "train.jsonl"
    seen = []
    for chosen in ("a", "c"):  # of the same size
        file.write_text(json.dumps({**ROW, "chosen": chosen}) + "\n")
        os.utime(file, (1e9, 1e9))
        seen.append(([row.value["chosen"] for row in HubDataset(str(tmp_path)).rows("train")], folder_digest(tmp_path)))
    (first, before), (second, after) = seen
    assert (first, second) == (["a"], ["c"])
    assert before != after


def test_pairs_that_changed_since_they_were_tokenised_are_tokenised_anew(tmp_path, capsys):
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
    assert "token ids from" not in anew
    assert "train: token ids from" in again
