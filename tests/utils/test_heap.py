"""What is asked of the C library's heap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from caldpo.utils import heap


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    libc = SimpleNamespace(mallopt=lambda *arguments: made.append(arguments))
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: libc)
    for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_blocks_of_16_mebibytes_are_mapped(calls: list[tuple[int, int]]) -> None:
    heap.map_large_blocks()
    assert calls == [(-3, 2**24)]


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_a_users_own_setting_stays(name: str, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    heap.map_large_blocks()
    assert calls == []


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = SimpleNamespace()
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: other)
    heap.map_large_blocks()
