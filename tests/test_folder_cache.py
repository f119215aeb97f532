"""Cached folders are whole or not there, also when processes race or die."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from filelock import FileLock

from caldpo.utils import folder_cache
from caldpo.utils.folder_cache import cached_folder
from tests.helpers.forked import context
from tests.helpers.messages import refused


def slow_make(folder: Path) -> None:
    """Leaves a trace of its call beside the cache, and is slow enough for others to arrive."""
    (folder / "first").write_text("1")
    calls = folder.parent / "calls"
    with calls.open("a") as file:
        file.write("call\n")
    time.sleep(0.5)
    (folder / "second").write_text("2")


def ask(cache: Path) -> list[str]:
    folder = cached_folder(cache, "thing", slow_make, key="cache")
    return sorted(p.name for p in folder.iterdir())


def test_processes_at_once_make_it_once_and_see_it_whole(tmp_path: Path) -> None:
    with context().Pool(3) as pool:
        seen = pool.map(ask, [tmp_path / "cache"] * 3, chunksize=1)
    assert seen == [["first", "second"]] * 3
    assert (tmp_path / "cache" / "calls").read_text() == "call\n"


def test_a_failure_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cached_folder(tmp_path, "thing", fail, key="cache")
    assert not (tmp_path / "thing").exists()
    folder = cached_folder(tmp_path, "thing", lambda f: (f / "whole").write_text("y"), key="cache")
    assert [p.name for p in folder.iterdir()] == ["whole"]


def test_made_folders_are_not_made_again(tmp_path: Path) -> None:
    first = cached_folder(tmp_path / "a" / "b", "thing", lambda f: (f / "x").write_text("1"), key="cache")

    def never(folder: Path) -> None:
        raise AssertionError("made again")

    assert cached_folder(tmp_path / "a" / "b", "thing", never, key="cache") == first
    assert (first / "x").read_text() == "1"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with refused("cannot write", key="model.cache", value=file / "cache", remedy="folder"):
        cached_folder(file / "cache", "thing", lambda f: None, key="model.cache")


@pytest.mark.parametrize("fails", [False, True])
def test_the_lock_is_let_go_of_and_not_merely_collected(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an exception, kept by a notebook, keeps the lock alive."""
    kept: list[FileLock] = []
    monkeypatch.setattr(folder_cache, "FileLock", lambda path: kept.append(FileLock(path)) or kept[-1])

    def make(folder: Path) -> None:
        assert kept[0].is_locked
        if fails:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut") if fails else contextlib.nullcontext():
        cached_folder(tmp_path, "thing", make, key="cache")
    assert [lock.is_locked for lock in kept] == [False]
