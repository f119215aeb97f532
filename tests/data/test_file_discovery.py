"""Data files that a name stands for: a folder, a split of one, a pattern, shards, folders that ``datasets`` saved."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from caldpo.data.columns import Columns
from caldpo.data.sources import file_discovery
from caldpo.data.sources.file_discovery import find_files
from caldpo.data.sources.local_files import LocalFiles
from tests.helpers.messages import names, refused


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def row(number: int) -> dict[str, str]:
    return {"prompt": f"q{number}", "chosen": f"good {number}", "rejected": "bad"}


def write(**files: range) -> None:
    """Files of rows by their names, in which ``__`` is a slash."""
    for name, numbers in files.items():
        write_file(name.replace("__", "/") + ".jsonl", numbers)


def write_file(name: str, numbers: range) -> None:
    path, rows = Path(name), [row(i) for i in numbers]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("prompt,chosen,rejected\n" + "".join(",".join(r.values()) + "\n" for r in rows))
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def prompts(name: str) -> list[int]:
    """The rows that a name gives, by their numbers."""
    return [int(r.value["prompt"][1:]) for r in LocalFiles().rows(name)]  # type: ignore[index]


def test_a_folder_of_files_is_read_in_natural_order() -> None:
    write(d__part_10=range(10, 11), d__part_9=range(9, 10), d__part_1=range(2))
    assert prompts("d") == prompts("d/") == [0, 1, 9, 10]
    assert list(LocalFiles().rows("d"))[-1].origin == "d/part_10.jsonl:1"
    assert LocalFiles().held_out("d") is None
    write(d__1__2__3__4__part_2=range(2, 3))
    assert sorted(prompts("d")) == [0, 1, 2, 9, 10], "at any depth"


def test_other_files_are_left_out_and_noted() -> None:
    write(d__a=range(1))
    Path("d/.cache").mkdir()
    write_file("d/.cache/b.jsonl", range(5))
    for name in ("README.md", "dataset_infos.json", ".c.jsonl"):
        Path("d", name).write_text("{}")
    assert prompts("d") == [0]
    Path("d/b.jsonl").touch()
    notes = LocalFiles().notes("d")
    (empty,) = [note for note in notes if "empty" in note]
    names(empty, "b.jsonl")
    (note,) = [note for note in notes if "README.md" in note]
    names(note, "dataset_infos.json", ".c.jsonl (hidden)")


@pytest.mark.parametrize(
    ("files", "train", "held_out", "test"),
    [
        (("train.jsonl", "test.jsonl"), [0], "d/test", [1]),
        (("pairs.jsonl", "validation.jsonl"), [0], "d/validation", [1]),
        (("train/0000.parquet", "test/0000.parquet"), [0], "d/test", [1]),
        (("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"), [0], "d/test", [1]),
        (("x/train.jsonl", "x/test.jsonl"), [0], "d/test", [1]),  # a subset in a folder of its own
        (("train.csv", "dev.jsonl"), [0], "d/dev", [1]),  # of two kinds, but not in one split
    ],
)
def test_a_folder_as_on_the_hub(files: tuple[str, str], train: list[int], held_out: str, test: list[int]) -> None:
    for place, name in enumerate(files):
        write_file(f"d/{name}", range(place, place + 1))
    assert prompts("d") == train
    assert LocalFiles().held_out("d") == held_out
    assert prompts(held_out) == test


def test_several_splits_to_train_on_are_named_and_each_can_be_asked_for() -> None:
    for place, split in enumerate(("train_prefs", "train_sft", "test_prefs", "test_sft")):
        write_file(f"d/data/{split}-00000-of-00001.parquet", range(place, place + 1))
    with refused("train_prefs", "train_sft", key="d", remedy="d/train_prefs"):
        find_files("d")
    assert (prompts("d/train_prefs"), LocalFiles().held_out("d/train_prefs")) == ([0], "d/test_prefs")
    with refused(key="d/train_pref", remedy="test_prefs, test_sft, train_prefs, train_sft") as caught:
        find_files("d/train_pref")
    names(caught.value.message, "d", "train_pref", "train_prefs")


def test_a_misspelt_name_beside_a_folder_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is at fault, not the folder that it is looked for in."""
    write(train=range(1), venv__lib__a=range(1), venv__lib__b=range(1))
    monkeypatch.setattr(file_discovery, "_MAX_ENTRIES", 3)
    with refused("no such file", "train.jsonl", key="./trian"):
        find_files("./trian")
    with refused("over 3 files", key=".", remedy="name the folder"):
        find_files(".")


@pytest.mark.parametrize("name", ["d", "d/*.parquet", "d/train", "d/train-*"])
def test_shards_are_read_in_order_and_a_missing_one_is_named(name: str) -> None:
    for shard in range(12):
        write_file(f"d/train-{shard:05d}-of-00012.parquet", range(shard, shard + 1))
    assert prompts(name) == list(range(12))
    for shard in (3, 11):
        Path(f"d/train-{shard:05d}-of-00012.parquet").unlink()
    lost = [f"train-{shard:05d}-of-00012.parquet" for shard in (3, 11)]
    with refused("2 of 12 shards", *lost, key=name, remedy="data=local"):
        prompts(name)


def test_shards_may_count_from_one_and_a_pattern_may_ask_for_some() -> None:
    for shard in (1, 2, 3):
        write_file(f"d/s-{shard}-of-3.jsonl", range(shard, shard + 1))
    assert prompts("d") == [1, 2, 3]
    assert prompts("d/s-[12]-of-3.jsonl") == [1, 2]
    write_file("d/s-1-of-2.jsonl", range(1))
    with refused("shards", 2, 3, "s-*.jsonl", key="d", remedy="'d/s-*-of-3.jsonl'"):
        prompts("d")


def test_files_of_two_kinds_are_refused() -> None:
    write_file("d/a.jsonl", range(1))
    write_file("d/b.csv", range(1))
    for name in ("d", "d/*"):
        with refused(".jsonl", "a.jsonl", ".csv", "b.csv", key=name, remedy="'d/*.jsonl'"):
            find_files(name)
    assert prompts("d/*.csv") == [0]
    Path("d/b.csv").rename("d/a.jsonl.gz")
    with refused("a.jsonl", "a.jsonl.gz", "same rows", key="d"):
        find_files("d")


def test_patterns() -> None:
    write(x__a=range(1), x__y__b=range(1, 2), x__train=range(2, 3), x__test=range(3, 4))
    assert prompts("x/?.jsonl") == [0]
    for place in (str(Path.cwd()), "~"):  # anywhere on the machine
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(Path.cwd()))
            assert prompts(f"{place}/x/*[ab].jsonl") == [0]
            names(LocalFiles().notes(f"{place}/x/*a*.jsonl")[0], Path.cwd() / "x" / "a.jsonl")
    assert prompts("**/[ab].jsonl") == [0, 1]
    assert any("training split" in note and "test split" in note for note in LocalFiles().notes("x/t*.jsonl"))
    Path("odd[1].jsonl").write_text(json.dumps(row(7)) + "\n")
    assert prompts("odd[1].jsonl") == [7]  # a file of this name is no pattern


@pytest.mark.parametrize(
    ("name", "facts", "remedy"),
    [
        ("empty", ("folder", "is empty"), ".jsonl, .jsonl.gz, .json, .json.gz, .parquet, .csv, .csv.gz"),
        ("notes", ("folder", "a.txt"), ".jsonl, .jsonl.gz, .json, .json.gz, .parquet, .csv, .csv.gz"),
        ("notes/*.jsonl", ("pattern", "a.txt"), "pattern"),
        ("notes/*", ("pattern", "notes/a.txt"), "pattern"),
        ("nowhere/*.jsonl", ("pattern", "folder nowhere"), "pattern"),
        ("only/", ("split", "test"), "only/test"),
        ("hidden", ("folder", "hidden names alone"), ".jsonl"),
    ],
)
def test_a_folder_without_data_files_lists_its_content(name: str, facts: tuple[str, ...], remedy: str) -> None:
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("x")
    write(only__test=range(1), hidden___git__x=range(1))
    Path("hidden/_git").rename("hidden/.git")
    Path("notes/.git").mkdir()
    with refused(*facts, key=name, remedy=remedy):
        find_files(name)


def test_a_missing_file_is_answered_with_the_data_files_beside_it() -> None:
    for name in (".git", ".cache", "src", "pears"):
        Path(name).mkdir()
    write(pairs_10=range(1), pairs_9=range(1))
    for name in ("Makefile", ".hidden.jsonl", "a.md"):
        Path(name).write_text("x")
    with refused(f"{Path.cwd()} holds the data files pairs_9.jsonl, pairs_10.jsonl", key="orders.csv") as error:
        find_files("orders.csv")
    for name in (".git", ".cache", ".hidden.jsonl", "Makefile", "a.md", "src"):
        assert name not in str(error.value)
    with refused("did you mean pairs_9.jsonl", key="pair_9.jsonl"):
        find_files("pair_9.jsonl")
    with refused("did you mean pears/", key="pear"):
        find_files("pear")
    with refused("src holds no data files", key="src/x.jsonl"):
        find_files("src/x.jsonl")


@pytest.mark.parametrize("name", ["owner/name", "hf://datasets/owner/name/x.parquet"])
def test_a_missing_file_may_be_a_hub_id(name: str) -> None:
    with refused("no such file", key=name, remedy="data=hub data.path=owner/name"):
        find_files(name)


def test_folders_written_by_save_to_disk() -> None:
    """A Dataset, of several shards too, and a DatasetDict; rows as ``datasets`` itself gives them."""
    rows = [row(i) for i in range(5)]
    rows[0]["prompt"] = [{"role": "user", "content": "q"}]  # type: ignore[assignment]
    data = datasets.Dataset.from_list([{**row(i), "score_chosen": None if i else 1.0} for i in range(5)])
    data.save_to_disk("one", num_shards=2)
    found = list(LocalFiles().rows("one"))
    assert [Columns().of_table(r.value) for r in found] == [{k: v for k, v in r.items() if v is not None} for r in data]
    assert [r.origin for r in found][2:4] == [f"one/data-0000{s}-of-00002.arrow[{i}]" for s, i in ((0, 2), (1, 0))]
    datasets.DatasetDict({"train": data, "test": data.select([4])}).save_to_disk("both")
    assert (prompts("both"), prompts("both/train"), prompts("both/test")) == ([*range(5)], [*range(5)], [4])
    assert LocalFiles().held_out("both") == "both/test"
    with refused("both", "split validation", key="both/validation", remedy="test, train"):
        prompts("both/validation")


@pytest.mark.parametrize(
    ("file", "content", "key", "fact"),
    [
        ("data-00000-of-00001.arrow", None, "one", "1 of 1 files"),
        ("data-00000-of-00001.arrow", "", "one/data-00000-of-00001.arrow", "Arrow"),
        ("state.json", "{", "one/state.json", "line 1 column 2"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "one", "../x.arrow"),
    ],
)
def test_a_damaged_saved_folder(file: str, content: str | None, key: str, fact: str) -> None:
    datasets.Dataset.from_list([row(0)]).save_to_disk("one")
    Path("one", file).unlink()
    if content is not None:
        Path("one", file).write_text(content)
    with refused(fact, file, key=key, remedy="data set"):
        prompts("one")


def test_a_saved_dict_names_no_folder_outside() -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list([row(0)])}).save_to_disk("both")
    Path("both/dataset_dict.json").write_text('{"splits": ["../one"]}')
    datasets.Dataset.from_list([row(0)]).save_to_disk("one")
    with refused("dataset_dict.json", "../one", key="both", remedy="data set"):
        prompts("both")
