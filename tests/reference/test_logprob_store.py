"""Parts on disk are written atomically, checked byte by byte, shared between processes, and survive a killed one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from caldpo.reference import logprob_store
from caldpo.reference.logprob_store import DamagedPartError, LogpStore
from tests.helpers.forked import context
from tests.helpers.messages import names

PAIRS = 21  # three parts of eight, the last one shorter


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob_store, "PAIRS_PER_PART", 8)


class Worker:
    """Computes values that tell their rows, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[range] = []
        self.said: list[str] = []

    def __call__(self, rows: range) -> torch.Tensor:
        self.asked.append(rows)
        return values_of(rows)

    def fill(self, folder: Path, key: str = "key", pairs: int = PAIRS) -> torch.Tensor:
        kept = LogpStore(folder, key, pairs, torch.float32, self.said.append)
        return torch.cat([actual.values for actual in kept.fill(self)], dim=1)


def values_of(rows: range) -> torch.Tensor:
    return torch.tensor([[-1.0 * row for row in rows], [-0.5 * row for row in rows]])


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_what_comes_back_is_what_was_computed(tmp_path: Path) -> None:
    first, second = Worker(), Worker()
    assert torch.equal(first.fill(tmp_path), values_of(range(PAIRS)))
    assert first.asked == [range(8), range(8, 16), range(16, 21)]
    assert torch.equal(second.fill(tmp_path), values_of(range(PAIRS)))
    assert second.asked == []
    assert (first.said, second.said) == ([], [])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    path.write_bytes(parts(path.parent)[0].read_bytes())


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (flip, "checksum"),
        (cut, "read"),
        (empty, "read"),
        (swap, "checksum"),
        (Path.unlink, None),
    ],
)
def test_a_harmed_part_alone_is_computed_again(harm: Callable[[Path], None], named: str | None, tmp_path: Path) -> None:
    Worker().fill(tmp_path)
    harm(parts(tmp_path)[1])
    worker = Worker()
    assert torch.equal(worker.fill(tmp_path), values_of(range(PAIRS)))
    assert worker.asked == [range(8, 16)]
    if named is None:
        assert worker.said == []
    else:
        (line,) = worker.said
        names(line, "part-00001.safetensors", "damaged", named)
    again = Worker()
    again.fill(tmp_path)
    assert again.asked == []


def test_every_flipped_bit_of_a_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Whatever byte is hit, header or values: an error, or the same values."""
    Worker().fill(tmp_path)
    kept = LogpStore(tmp_path, "key", PAIRS, torch.float32, print)
    part = kept.parts[2]
    whole = part.path.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        hit = bytearray(whole)
        hit[place] ^= 1 << (place % 8)
        part.path.write_bytes(hit)
        try:
            actual = kept.read(part)
        except DamagedPartError:
            noticed += 1
        else:
            assert actual is not None
            assert torch.equal(actual.values, values_of(part.rows)), place
    assert noticed > len(whole) // 2


def test_values_of_something_else_are_not_taken(tmp_path: Path) -> None:
    Worker().fill(tmp_path)
    other = Worker()
    other.fill(tmp_path, key="other")
    assert len(other.asked) == 3


def test_distrusted_values_are_replaced_and_others_kept(tmp_path: Path) -> None:
    kept = LogpStore(tmp_path, "key", PAIRS, torch.float32, print)
    actual = kept.fill(values_of)
    worker = Worker()
    kept.fill(worker, [actual[1].checksum])
    assert worker.asked == [range(8, 16)]


def build_slowly(folder: Path) -> torch.Tensor:
    logprob_store.PAIRS_PER_PART = 4

    def compute(rows: range) -> torch.Tensor:
        with (folder.parent / "asked").open("a") as file:
            file.write(f"{rows.start} {os.getpid()}\n")
        time.sleep(0.3)
        return values_of(rows)

    kept = LogpStore(folder, "key", PAIRS, torch.float32, lambda _: None)
    return torch.cat([actual.values for actual in kept.fill(compute)], dim=1)


def test_processes_at_once_share_the_parts(tmp_path: Path) -> None:
    with context().Pool(2) as pool:
        actual = pool.map(build_slowly, [tmp_path / "values"] * 2, chunksize=1)
    for values in actual:
        assert torch.equal(values, values_of(range(PAIRS)))
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert sorted(int(start) for start, _ in asked) == [0, 4, 8, 12, 16, 20]
    assert len({process for _, process in asked}) == 2  # neither waited for the other to do it all


def build_and_die(folder: Path) -> None:
    logprob_store.PAIRS_PER_PART = 8

    def compute(rows: range) -> torch.Tensor:
        if rows.start == 16:
            (folder / "part-00002.partial").write_bytes(b"half a fi")
            os.kill(os.getpid(), signal.SIGKILL)
        return values_of(rows)

    LogpStore(folder, "key", PAIRS, torch.float32, lambda _: None).fill(compute)


def test_a_killed_process_leaves_its_finished_parts(tmp_path: Path) -> None:
    process = context().Process(target=build_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(parts(tmp_path)) == 2
    worker = Worker()
    assert torch.equal(worker.fill(tmp_path), values_of(range(PAIRS)))
    assert worker.asked == [range(16, 21)]


def test_an_interrupted_build_can_be_tried_again_while_its_exception_is_kept(tmp_path: Path) -> None:
    """As a notebook does: what the frames of the exception hold is not collected."""
    kept = LogpStore(tmp_path, "key", PAIRS, torch.float32, print)
    interrupts: list[BaseException] = []

    def interrupted(rows: range) -> torch.Tensor:
        raise KeyboardInterrupt

    try:
        kept.fill(interrupted)
    except KeyboardInterrupt as interrupt:
        interrupts.append(interrupt)
    lock = FileLock(kept.parts[0].path.with_suffix(".lock"))
    lock.acquire(timeout=0)  # raises where it is still held
    lock.release()
    assert len(interrupts) == 1
