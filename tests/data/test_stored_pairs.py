"""Stored pairs are the pairs; what is kept of them in memory is theirs."""

from __future__ import annotations

import errno
import gc
import random
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from caldpo.data import load, stored_pairs
from caldpo.data.load import load_pairs, refuse_bad_rows
from caldpo.data.pair import PreferencePair, prompt_key
from caldpo.data.raw_row import RawRow
from caldpo.data.sources.local_files import LocalFiles
from caldpo.data.stored_pairs import BLOCK, StoredPairs
from caldpo.utils import ordered_map
from tests.data.prepared import prepared
from tests.data.small import RowsSource, chat
from tests.helpers.messages import names, refused


def pairs(count: int) -> list[PreferencePair]:
    rng = random.Random(count)
    result = []
    for i in range(count):
        prompt: Any = f"Prompt {i % 97}" if i % 2 else chat(f"Prompt {i % 97}")
        scores = (rng.random() + 1, rng.random()) if i % 3 else (None, None)
        extras: dict[str, Any] = (
            {"chosen_extra": {"reasoning_content": "Hm."}, "tools": [{"name": "f"}]} if i % 5 == 0 else {}
        )
        result.append(
            PreferencePair(prompt, f"yes {i} é\0", f"no {i}", *scores, origin=f"f:{i}", remarks=("cut",), **extras)
        )
    return result


@pytest.fixture(params=["in memory", "in a file"])
def small_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in a file":
        monkeypatch.setattr(stored_pairs, "IN_MEMORY", 1000)


@pytest.mark.parametrize("count", [0, 1, BLOCK, 3 * BLOCK + 5])
@pytest.mark.usefixtures("small_memory")
def test_stored_pairs_are_the_pairs(count: int) -> None:
    given = pairs(count)
    stored = StoredPairs.of(given)
    assert len(stored) == count
    assert list(stored) == given == [stored[place] for place in range(count)] == stored
    assert [pair.remarks for pair in stored] == [pair.remarks for pair in given]
    assert stored[1:-1:3] == given[1:-1:3]
    assert StoredPairs.of(stored) is stored
    some = random.Random(0).sample(range(count), count // 2)
    drawn = stored.take(some)
    for part, expected in ((stored, given), (drawn, [given[i] for i in some]), (drawn.take([]), [])):
        assert part == expected
        assert part.origins() == [pair.origin for pair in expected]
        assert list(part.keys()) == [prompt_key(pair.prompt) for pair in expected]
        assert part.all_text() == all(isinstance(pair.prompt, str) for pair in expected)
        scores = np.array([(pair.score_chosen, pair.score_rejected) for pair in expected], dtype=float).reshape(-1, 2)
        np.testing.assert_array_equal(part.scores(), scores)


def test_contents_tell_pairs_apart_by_all_but_scores_and_origin() -> None:
    base = PreferencePair("a", "b", "c", origin="f:1")
    others = [
        PreferencePair("a", "b", "c", 2.0, 1.0, origin="f:2"),
        PreferencePair("ab", "", "c"),
        PreferencePair("a", "c", "b"),
        PreferencePair(chat("a"), "b", "c"),
        PreferencePair("a", "b", "c", demonstration=True),
        PreferencePair("a", "b", "c", rejected_extra={"x": 1}),
        PreferencePair("a", "b", "c", template_kwargs={"x": 1}),
    ]
    contents = StoredPairs.of([base, *others]).contents()
    digests = [contents[16 * i : 16 * i + 16] for i in range(len(others) + 1)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == len(others)


def test_blocks_that_other_processes_read_give_the_same_pairs_and_report(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    lines = []
    for i in range(14 * BLOCK):
        prompt, chosen = rng.choice([f"Prompt {i}", "Prompt 1", ""]), rng.choice([f"yes {i}", "yes", "no"])
        lines.append(rng.choice([f'{{"prompt": "{prompt}", "chosen": "{chosen}", "rejected": "no"}}'] * 9 + ["{", ""]))
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    found = []
    for workers in (0, 2):
        monkeypatch.setattr(ordered_map, "workers_at_once", lambda workers=workers: workers)
        stored, report = load_pairs(LocalFiles(), str(path), on_degenerate="drop")
        found.append((list(stored), report))
    assert found[0] == found[1]
    assert {r.kind for r in found[0][1].rejections} == {"line", "row", "degenerate"}
    assert load.MAX_REJECTIONS > len(found[0][1].rejections) > 1000


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [1, 10 * BLOCK + 3])  # in a block that this process reads, and that a worker does
@pytest.mark.parametrize("depth", [600, 20_000])  # too deep to be packed, to be checked or even sent to a worker
def test_a_row_that_is_nested_too_deeply_is_named(
    monkeypatch: pytest.MonkeyPatch, workers: int, at: int, depth: int
) -> None:
    deep: Any = "x"
    for _ in range(depth):
        deep = {"a": deep}
    ask = [{"role": "user", "content": "Q"}]
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}

    class Deep(RowsSource):
        def rows(self, split: str) -> Any:
            for i in range(12 * BLOCK):
                more = {"tools": [deep]} if i == at else {"chat_template_kwargs": {"i": i}}
                yield RawRow(f"{split}[{i}]", {"prompt": ask, **sides, **more})

    monkeypatch.setattr(ordered_map, "workers_at_once", lambda: workers)
    stored, report = load_pairs(Deep(), "train")
    [bad] = report.rejections
    assert (bad.origin, bad.kind) == (f"train[{at}]", "row")
    names(bad.reason, "nested too deeply")
    assert stored.origins() == [f"train[{i}]" for i in range(12 * BLOCK) if i != at]
    with refused("nested too deeply", f"train[{at}]", key="data.on_invalid", remedy="skip"):
        refuse_bad_rows([report], Path("rejected_rows.jsonl"))


def test_pairs_of_a_source_without_blocks_of_its_own() -> None:
    rows = [(f"a {i}", f"yes {i}", "no") for i in range(2 * BLOCK + 1)]
    stored, report = load_pairs(RowsSource(train=rows), "train")
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in stored] == rows
    assert report.kept == len(rows)


def test_once_split_the_texts_of_the_training_pairs_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those held out are kept, for samples and true rewards, in a file of their own."""
    made: list[IO[bytes]] = []

    def recorded(**keys: Any) -> IO[bytes]:
        made.append(tempfile.NamedTemporaryFile(**keys))  # noqa: SIM115  # as long as the pairs
        return made[-1]

    monkeypatch.setattr(stored_pairs, "IN_MEMORY", 100)
    monkeypatch.setattr(stored_pairs.tempfile, "TemporaryFile", recorded)
    rows = [(f"a {i}", f"yes {'x' * 50} {i}", "no") for i in range(400)]
    module, _ = prepared(tmp_path, source=RowsSource(train=rows), test=None, test_fraction=0.1)
    held_out = list(module.test_sources)
    sizes = [Path(file.name).stat().st_size for file in made]
    places = [weakref.ref(file) for file in made]
    made.clear()
    gc.collect()
    open_still = [size for size, place in zip(sizes, places, strict=True) if place() is not None]
    assert 20 < len(held_out) < 80
    assert len(sizes) == 2
    assert len(open_still) == 1
    assert open_still[0] < sizes[0] / 4
    assert list(module.test_sources) == held_out
    assert [pair.origin for pair in module.test_sources] == [pair.origin for pair in module.test_pairs]


def test_a_full_disk_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stored_pairs, "IN_MEMORY", 10)
    monkeypatch.setattr(stored_pairs.tempfile, "TemporaryFile", full)
    with refused("No space left", key="TMPDIR", value=stored_pairs.tempfile.gettempdir(), remedy="TMPDIR"):
        StoredPairs.of(pairs(3))
