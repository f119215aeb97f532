"""Clock, memory and what is read back from batches."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from caldpo.bench import measure
from caldpo.bench.measure import StepMeter
from caldpo.bench.step_timer import pairs_of, step_digests
from caldpo.bench.worker_job import Answer, digest, read, write
from caldpo.data.collate import collate
from tests.helpers.forked import context
from tests.helpers.tiny import tiny_pairs


def test_the_clock_leaves_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 17.5])
    monkeypatch.setattr(measure, "now", lambda device: next(times))
    settings = SimpleNamespace(warmup_steps=2, all_steps=5)
    clock = StepMeter(settings, "cpu")  # type: ignore[arg-type]
    for _ in range(5):
        assert clock.seconds != clock.seconds, "not a number before the end"
        clock.step_done()
    assert clock.seconds == 7.5


def measured_training() -> dict[str, float | str]:
    """Measure a process that keeps 48 MiB, frees 192 MiB before training and needs 96 MiB more in each step."""
    mib = 2**20
    meter = StepMeter(SimpleNamespace(warmup_steps=1, all_steps=3), "cpu")  # type: ignore[arg-type]
    kept = torch.ones(48 * mib // 4)
    before = torch.ones(192 * mib // 4)  # a transient of loading
    del before
    meter.start_training()
    for _ in range(3):
        transient = torch.ones(96 * mib // 4)
        del transient
        meter.step_done()
    assert kept.sum() > 0
    return meter.memory


def test_memory_counts_what_training_holds_at_once_and_nothing_before() -> None:
    if not measure.reset_peak("cpu"):
        pytest.skip("this system cannot reset a process's peak memory")
    # a process of its own: what other tests have freed would be given back, or used again, meanwhile
    with ProcessPoolExecutor(1, mp_context=context()) as pool:
        result = pool.submit(measured_training).result()
    mib = 2**20
    assert result["peak"] == pytest.approx(144 * mib, abs=24 * mib)
    assert result["peak_before_training"] - result["after_imports"] > 200 * mib
    assert result["peak_of_process"] == result["peak"] + result["after_imports"]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_ids_are_read_back_from_a_batch(layout: str) -> None:
    pairs = tiny_pairs(5)
    expected = [(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in pairs]
    assert pairs_of(collate(pairs, pad_id=0, layout=layout)) == expected
    filler = collate(pairs, pad_id=0, layout=layout, weight=[1, 1, 0, 1, 0])
    assert pairs_of(filler) == [expected[0], expected[1], expected[3]]


def test_steps_are_put_together_from_micro_batches() -> None:
    pairs = tiny_pairs(6)
    expected = [(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in pairs]
    parts = [collate(pairs[i:j], pad_id=0) for i, j in [(0, 1), (1, 3), (3, 6)]]
    assert step_digests(parts, 3) == [digest(expected[:3]), digest(expected[3:])]


def test_a_loss_that_is_not_a_number_reaches_the_comparison(tmp_path: Path) -> None:
    answer = Answer([float("nan")], [1.0], [digest([])], 1.0, None, {"peak": 1, "of": ""}, "", {})
    write(answer, tmp_path / "answer.json")
    same = read(Answer, tmp_path / "answer.json")
    assert same.losses[0] != same.losses[0]
    assert same.grad_norms == answer.grad_norms
