"""Several data sets under one key: read together, weighed, split by prompt as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caldpo.data.joined_sources import parts_of
from caldpo.data.pair import prompt_key
from caldpo.data.sources.local_files import LocalFiles
from tests.data.prepared import prepared, rejected
from tests.data.small import WORDS, RowsSource
from tests.helpers.messages import names, refused

LETTERS = WORDS[:26]


def rows(first: str, count: int) -> list[tuple[str, str, str]]:
    """Pairs about prompts of their own."""
    return [(f"{first} {LETTERS[i // 26]} {LETTERS[i % 26]} ?", " yes", " no") for i in range(count)]


SOURCE = RowsSource(big=rows("a", 200), small=rows("b", 30), test=rows("c", 4))


def counts(module: Any) -> dict[str, int]:
    """Training pairs by data set."""
    found: dict[str, int] = {}
    for i in range(len(module.train_pairs)):
        name = module.origin(i).split(":")[0]
        found[name] = found.get(name, 0) + 1
    return found


def test_a_list_is_all_of_them_in_order(tmp_path: Path) -> None:
    module, report = prepared(tmp_path, source=SOURCE, train=["big", "small"])
    assert counts(module) == {"big": 200, "small": 30}
    assert [module.origin(i) for i in (0, 199, 200)] == ["big:1", "big:200", "small:1"]
    assert [(r["split"], r["kept"]) for r in report["read"]] == [("big", 200), ("small", 30), ("test", 4)]
    assert report["notes"] == []


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"big": 0.7, "small": 0.3}, {"big": 70, "small": 30}),  # the small one is taken whole
        ({"big": 7, "small": 3}, {"big": 70, "small": 30}),  # in proportion
        ({"big": 1, "small": 1}, {"big": 30, "small": 30}),
        ({"big": 99, "small": 1}, {"big": 200, "small": 2}),  # and the big one where that is scarce
        ([{"path": "big", "weight": 0.7}, {"path": "small", "weight": 0.3}], {"big": 70, "small": 30}),
    ],
)
def test_weights_are_shares_of_the_training_pairs(tmp_path: Path, weights: Any, expected: dict[str, int]) -> None:
    """The most pairs that have the shares, none twice, each count in the announcement."""
    module, report = prepared(tmp_path, source=SOURCE, train=weights)
    assert counts(module) == expected
    origins = [module.origin(i) for i in range(len(module.train_pairs))]
    assert len(set(origins)) == len(origins)
    (note,) = report["notes"]
    for name, count, there in (("big", expected["big"], 200), ("small", expected["small"], 30)):
        names(note, name, f"{count / sum(expected.values()):.1%}", f"{count} of {there} pairs")


def test_the_draw_is_a_function_of_the_split_seed(tmp_path: Path) -> None:
    def drawn(**changes: Any) -> list[str]:
        module, _ = prepared(tmp_path, source=SOURCE, train={"big": 1, "small": 1}, **changes)
        return [module.origin(i) for i in range(len(module.train_pairs))]

    assert drawn() == drawn(seed=5) != drawn(split_seed=5)
    assert sorted(drawn(), key=lambda origin: (origin[0], int(origin.split(":")[1]))) == drawn()


def test_no_prompt_of_the_mix_is_on_both_sides(tmp_path: Path) -> None:
    """A prompt that two data sets share goes to one side with both; held-out pairs are not weighed."""
    both = [(p, " maybe", " no") for p, _, _ in rows("a", 60)]
    source = RowsSource(big=rows("a", 200), small=both)
    module, _ = prepared(tmp_path, source=source, train={"big": 1, "small": 1}, test=None, test_fraction=0.3)
    prompts = [{tuple(pair.prompt_ids) for pair in pairs} for pairs in (module.train_pairs, module.test_pairs)]
    assert not prompts[0] & prompts[1]
    held_out = {prompt_key(pair.prompt) for pair in module.test_sources}
    assert len(module.test_pairs) == sum(prompt_key(p) in held_out for p, _, _ in (*rows("a", 200), *both))
    found = counts(module)
    assert found["big"] == found["small"] == sum(prompt_key(p) not in held_out for p, _, _ in both)


def test_a_pair_that_two_data_sets_have_is_taken_once(tmp_path: Path) -> None:
    source = RowsSource(big=rows("a", 20), small=rows("a", 25), test=rows("c", 4))
    module, _ = prepared(tmp_path, source=source, train=["big", "small"])
    assert counts(module) == {"big": 20, "small": 5}
    first = rejected(tmp_path)[0]
    assert (first["split"], first["origin"]) == ("small", "small:1")
    names(first["reason"], "repeats")


@pytest.mark.parametrize(
    ("mix", "facts", "remedy"),
    [
        ([], ("no data",), "'[NAME,NAME]'"),
        (["a", "a"], ("a", "twice"), "once"),
        ({"a": 1, "b": None}, ("b", "weight"), "weight"),
        ([{"path": "a", "weight": 1}, "b"], ("b", "weight"), "weight"),
        ({"a": 0}, ("weight of a", "> 0", "not 0"), "weight"),
        ({"a": "x"}, ("weight of a", "> 0", "'x'"), "weight"),
        ({"a": True}, ("weight of a", "> 0", "True"), "weight"),
        ({"a": float("nan")}, ("weight of a", "> 0", "nan"), "weight"),
        ([3], (3,), "'[NAME,NAME]'"),
        ([{"file": "a"}], ("{'file': 'a'}",), "'[NAME,NAME]'"),
    ],
)
def test_an_invalid_mixture_is_named(mix: Any, facts: tuple[Any, ...], remedy: str) -> None:
    with refused(*facts, key="data.train", remedy=remedy):
        parts_of(mix, "data.train")


def test_weights_that_leave_a_data_set_without_pairs(tmp_path: Path) -> None:
    with refused("no pair of small", "200 of 200 pairs", "0 of 30 pairs", key="data.train", remedy="weights"):
        prepared(tmp_path, source=SOURCE, train={"big": 10_000, "small": 1})


def test_an_unreadable_data_set_is_named_with_the_key(tmp_path: Path) -> None:
    files = write(tmp_path, a=3)
    with refused("no such file", "a.jsonl", key="data.train", value=f"{tmp_path}/b.jsonl"):
        prepared(tmp_path, source=LocalFiles(), train=[files["a"], f"{tmp_path}/b.jsonl"])


def test_a_file_under_two_names_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, a=3, b=3)
    for twice in (["a.jsonl", "./a.jsonl"], ["*.jsonl", "b.jsonl"], {".": 1, "a.jsonl": 1}):
        first, second = twice
        with refused("already", first, Path(second).name, key="data.train", value=second) as caught:
            prepared(tmp_path, source=LocalFiles(), train=twice)
        assert getattr(caught.value, "value", None) == second


def write(folder: Path, **files: int) -> dict[str, str]:
    """Files of so many rows by their names; their paths."""
    for name, count in files.items():
        lines = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows(name[0], count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: str(folder / f"{name}.jsonl") for name in files}


def test_the_test_split_of_a_folder_is_used_and_noted(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    write(folder, train=20, test=4)
    keys = {"source": LocalFiles(), "train": str(folder)}
    (folder / "test.jsonl").write_text((folder / "test.jsonl").read_text().replace("t a", "z a"))  # prompts of its own
    module, report = prepared(tmp_path, **keys, test="auto")
    assert (len(module.train_pairs), len(module.test_pairs)) == (20, 4)
    names(report["notes"][0], f"data.test={folder}/test")
    module, report = prepared(tmp_path, **keys, test=None, test_fraction=0.3)
    assert len(module.train_pairs) + len(module.test_pairs) == 20
    names(report["notes"][0], "not used", f"test split {folder}/test")
    module, report = prepared(tmp_path, source=LocalFiles(), train=f"{folder}/train.jsonl", test=[str(folder)])
    assert (len(module.test_pairs), f"{folder}/test of {folder}" in report["notes"][0]) == (4, True)
    (folder / "train.jsonl").rename(tmp_path / "train.jsonl")
    module, _ = prepared(tmp_path, source=LocalFiles(), train=f"{tmp_path}/train.jsonl", test=str(folder))
    assert len(module.test_pairs) == 4
    with refused("split", "test", key="data.train", value=folder, remedy=f"{folder}/test"):
        prepared(tmp_path, source=LocalFiles(), train=str(folder), test="auto")
    (tmp_path / "train.jsonl").rename(folder / "train.jsonl")
    one_file = prepared(tmp_path, source=LocalFiles(), train=f"{folder}/train.jsonl", test="auto", test_fraction=0.3)
    assert len(one_file[0].train_pairs) + len(one_file[0].test_pairs) == 20
