"""Results keep the order of the items, in this process or others; errors come in that order, too."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from caldpo.errors import CaldpoError
from caldpo.utils import ordered_map as module
from caldpo.utils.ordered_map import INLINE, ordered_map, workers_at_once

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.fixture(params=[0, 2, 3])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    monkeypatch.setattr(module, "workers_at_once", lambda: count)
    return count


@pytest.mark.parametrize("count", [0, 1, INLINE, INLINE + 1, INLINE + 2, 3 * INLINE + 1])
def test_results_are_in_order(count: int, workers: int) -> None:
    big = "x" * 200_000  # more than a pipe holds
    results = list(ordered_map(lambda item: (item**2, os.getpid(), big), (item for item in range(count))))
    assert [value for value, *_ in results] == [item**2 for item in range(count)]
    pids = [pid for _, pid, _ in results]
    assert set(pids[:INLINE]) <= {os.getpid()}
    others = set(pids[INLINE:]) - {os.getpid()}
    assert len(others) == min(workers, max(0, count - INLINE))


def failing(at: int) -> Callable[[int], int]:
    def function(item: int) -> int:
        if item == at:
            raise ValueError(f"item {item}")
        return item

    return function


def items(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("the items end badly")


@pytest.mark.parametrize("at", [0, INLINE, INLINE + 3])
def test_an_error_of_the_function_follows_the_results_before_it(at: int, workers: int) -> None:
    seen: list[int] = []
    with pytest.raises(ValueError, match=f"item {at}"):
        seen.extend(ordered_map(failing(at), items(INLINE + 6)))
    assert seen == list(range(at))


def test_an_error_of_the_items_follows_all_results(workers: int) -> None:
    seen: list[int] = []
    with pytest.raises(OSError, match="end badly"):
        seen.extend(ordered_map(failing(-1), items(INLINE + 4)))
    assert seen == list(range(INLINE + 4))


def test_no_process_outlives_its_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "workers_at_once", lambda: 2)
    results = ordered_map(abs, range(100))
    for _ in range(INLINE + 3):
        next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_a_killed_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "workers_at_once", lambda: 2)

    def function(item: int) -> int:
        if item == INLINE + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(CaldpoError, match="killed"):
        list(ordered_map(function, range(30)))


def test_ranks_of_a_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    counts = []
    for ranks in ("", "1", "4", "5", "16"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        counts.append(workers_at_once())
    assert counts == [8, 8, 3, 2, 0]
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert workers_at_once() == 6


def test_workers_end_although_the_parent_catches_signals(workers: int) -> None:
    """One that has just been forked has its parent's handlers still, as those with which a run stops at a step."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        for _ in range(10):
            with pytest.raises(ValueError, match=f"item {INLINE}"):
                list(ordered_map(failing(INLINE), range(INLINE + 1)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not multiprocessing.active_children()


def test_fewer_processes_than_wanted(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a limit on processes or memory: those that there are do the work, or this one."""
    start, started = module._Worker.__init__, list[None]()

    def limited(self: module._Worker, function: Callable[[int], int]) -> None:
        if len(started) == workers - 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(None)
        start(self, function)

    monkeypatch.setattr(module._Worker, "__init__", limited)
    assert list(ordered_map(lambda item: item**2, range(3 * INLINE))) == [item**2 for item in range(3 * INLINE)]
    assert not multiprocessing.active_children()


def test_items_that_cannot_be_sent_are_done_here_in_their_turn(workers: int) -> None:
    deep: list[object] = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    several = [*range(INLINE + 3), deep, *range(5)]
    expected = [isinstance(item, int) for item in several]
    assert list(ordered_map(lambda item: isinstance(item, int), several)) == expected


class _TwoArgumentsError(Exception):
    def __init__(self, key: str, value: str) -> None:
        super().__init__(f"{key}={value} is wrong")


def test_an_error_that_cannot_be_rebuilt_keeps_its_text(workers: int) -> None:
    def function(item: int) -> int:
        if item == INLINE + 2:
            raise _TwoArgumentsError("key", "value")
        return item

    with pytest.raises((RuntimeError, _TwoArgumentsError), match="key=value is wrong"):
        list(ordered_map(function, range(INLINE + 5)))
