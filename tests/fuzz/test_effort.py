"""Inputs are counted, in one process and in several."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from tests import conftest
from tests.fuzz import effort

pytestmark = pytest.mark.slow


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """An empty count in place of this process's own."""
    empty: Counter[str] = Counter()
    monkeypatch.setattr(effort, "tried", empty)
    monkeypatch.setattr(conftest, "_of_workers", Counter())
    return empty


def summary(**stats: list[Any]) -> list[str]:
    lines: list[str] = []
    conftest.pytest_terminal_summary(SimpleNamespace(stats=stats, write_line=lines.append))
    return lines


def test_every_input_is_counted(counts: Counter[str]) -> None:
    seen = []

    @effort.fuzz(30, number=st.integers())
    def some_test(number: int) -> None:
        seen.append(number)

    some_test()
    assert counts == {"some_test": len(seen)}
    assert 0 < len(seen) <= max(30, effort.ASKED)


def test_what_workers_tried_is_added_up(counts: Counter[str]) -> None:
    assert summary() == []
    for tried in ({"one": 1000, "two": 2}, {"one": 500}):
        counts.clear()
        counts.update(tried)
        worker = SimpleNamespace(config=SimpleNamespace(workeroutput={}))
        conftest.pytest_sessionfinish(worker)  # type: ignore[arg-type]
        conftest.pytest_testnodedown(SimpleNamespace(workeroutput=worker.config.workeroutput), None)
    counts.clear()
    conftest.pytest_sessionfinish(SimpleNamespace(config=SimpleNamespace()))  # type: ignore[arg-type]
    conftest.pytest_testnodedown(SimpleNamespace(), "killed")
    failed = [SimpleNamespace(nodeid=name) for name in ("tests/fuzz/test_rows.py::test_a", "tests/test_b.py::test_b")]
    assert summary(failed=failed) == ["    1,500  one", "        2  two", "fuzzing: 1,502 inputs in 2 tests, 1 failure"]
