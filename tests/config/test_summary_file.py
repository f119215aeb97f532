"""A run's summary: what can be relied on of it, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from caldpo.config.summary_file import known_summary, read_summary
from tests.helpers.messages import refused

WRITTEN = {
    "status": "finished",
    "steps": 8,
    "stretches": 2,
    "overrides": ["loss=dpo"],
    "metrics": {"loss": None},
    "data": {"test": {"pairs": 3}},
    "own": [1],
}


def write(folder: Path, content: Any) -> Path:
    (folder / "summary.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_summary(tmp_path) == {}
    assert read_summary(write(tmp_path, WRITTEN)) == known_summary(tmp_path) == WRITTEN


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "8"),
        ("steps", True),
        ("stretches", 1.5),
        ("overrides", "loss=dpo"),
        ("overrides", {"loss": "dpo"}),
        ("metrics", [1]),
        ("metrics", None),
        ("data", "x"),
    ],
)
def test_an_entry_of_another_type_is_not_there(tmp_path: Path, key: str, value: Any) -> None:
    write(tmp_path, WRITTEN | {key: value})
    assert read_summary(tmp_path) == {name: entry for name, entry in WRITTEN.items() if name != key}


@pytest.mark.parametrize("text", ['{"status": "fin', "[1]", "null", '{"status": ["finished"]}', "[" * 100_000, "\0"])
def test_a_damaged_one_is_named_or_does_without(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    with refused(key=tmp_path / "summary.json") as refusal:
        read_summary(tmp_path)
    assert refusal.value.remedy
    assert known_summary(tmp_path) == {}


def test_what_the_disk_does_not_give_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **keys: Any) -> Any:
        raise OSError(5, os.strerror(5))

    write(tmp_path, WRITTEN)
    monkeypatch.setattr(Path, "read_text", fails)
    for read in (read_summary, known_summary):  # whoever added to nothing would write it over
        with refused(os.strerror(5), key=tmp_path / "summary.json"):
            read(tmp_path)
