"""Samples on disk are drawn once, by one of several processes, and checked when they are read."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from caldpo.errors import CaldpoError
from caldpo.reference.sample_store import sampling_facts, stored_samples
from tests.helpers.messages import names

FACTS = {"weights": "1", "seed": "0"}
SAMPLES = [[5, 2], [], [7, 7, 2]]


class Draw:
    """Counts the draws."""

    def __init__(self, samples: list[list[int]] = SAMPLES) -> None:
        self.samples, self.draws = samples, 0

    def __call__(self) -> list[list[int]]:
        self.draws += 1
        return self.samples


def entry(cache: Path) -> Path:
    (path,) = cache.glob("samples-*.json")
    return path


def test_they_are_drawn_once_and_read_again(tmp_path: Path) -> None:
    first, second = Draw(), Draw([[9]])
    assert stored_samples(tmp_path / "cache", FACTS, first) == SAMPLES
    assert stored_samples(tmp_path / "cache", dict(reversed(FACTS.items())), second) == SAMPLES
    assert (first.draws, second.draws) == (1, 0)
    assert json.loads(entry(tmp_path / "cache").read_text())["determined by"] == FACTS


@pytest.mark.parametrize("fact", FACTS)
def test_another_fact_is_another_entry(fact: str, tmp_path: Path) -> None:
    stored_samples(tmp_path, FACTS, Draw())
    other = Draw([[9]])
    assert stored_samples(tmp_path, FACTS | {fact: "another"}, other) == [[9]]
    assert other.draws == 1
    assert stored_samples(tmp_path, FACTS, other) == SAMPLES


def flip(path: Path) -> None:
    path.write_text(path.read_text().replace("[5, 2]", "[6, 2]"))


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:40])


def replace_by_another(path: Path) -> None:
    """The entry of other facts, whole, under this one's name."""
    stored_samples(path.parent / "other", FACTS | {"seed": "1"}, Draw([[9]]))
    path.write_bytes(entry(path.parent / "other").read_bytes())


def write_list(path: Path) -> None:
    path.write_text("[1]")


@pytest.mark.parametrize(
    ("harm", "named"),
    [(flip, "checksum"), (cut, "cannot be read"), (replace_by_another, "checksum"), (write_list, "cannot be read")],
)
def test_a_damaged_or_foreign_entry_is_drawn_again(
    harm: Callable[[Path], None], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored_samples(tmp_path, FACTS, Draw())
    harm(entry(tmp_path))
    again = Draw()
    assert stored_samples(tmp_path, FACTS, again) == SAMPLES
    assert again.draws == 1
    names(capsys.readouterr().out, entry(tmp_path), named)
    assert stored_samples(tmp_path, FACTS, again) == SAMPLES
    assert again.draws == 1


def test_an_error_while_drawing_stores_nothing(tmp_path: Path) -> None:
    def fail() -> list[list[int]]:
        raise CaldpoError("logits are not finite")

    with pytest.raises(CaldpoError, match="finite"):
        stored_samples(tmp_path, FACTS, fail)
    assert not list(tmp_path.glob("samples-*.json"))
    assert stored_samples(tmp_path, FACTS, Draw()) == SAMPLES


def test_a_cache_that_cannot_be_written_costs_no_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    draw = Draw()
    assert stored_samples(tmp_path / "cache", FACTS, draw) == SAMPLES
    assert draw.draws == 1
    names(capsys.readouterr().out, tmp_path / "cache", "not stored")


def draw_and_note(cache: Path, log: Path, barrier: Any) -> None:
    def draw() -> list[list[int]]:
        with log.open("a") as file:
            file.write("drawn\n")
        return SAMPLES

    barrier.wait()
    assert stored_samples(cache, FACTS, draw) == SAMPLES


def test_processes_that_start_at_once_draw_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    workers = [context.Process(target=draw_and_note, args=(tmp_path, tmp_path / "log", barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "drawn\n"


def test_facts_tell_prompts_settings_and_threads_apart() -> None:
    def facts(prompts: list[list[int]] = [[1, 2], [3]], **settings: object) -> dict[str, str]:  # noqa: B006
        return sampling_facts(torch.device("cpu"), prompts, **{"seed": 0, "temperature": 1.0} | settings)

    assert facts() == facts()
    assert facts([[1], [2, 3]]) != facts()
    assert facts(seed=1) != facts()
    assert facts(temperature=0.5) != facts()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        more = facts()
    finally:
        torch.set_num_threads(threads)
    assert more != facts()
