"""Non-finite losses and gradients: located, dumped for replay, and the step stops the run or is skipped."""

from __future__ import annotations

import copy
import errno
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from caldpo.errors import CaldpoError
from caldpo.nonfinite.guard import NonFiniteGuard
from caldpo.nonfinite.step_dump import read_dump
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_pairs
from tests.helpers.tiny_trainer import fit, make_module
from tests.nonfinite.guard_ranks import train_on_ranks
from tests.nonfinite.spoiled_runs import (
    PairsWithOrigins,
    SpoiledCalDPO,
    SpoilGradient,
    dumps,
    guarded_module,
    pairs_with_spoiled,
)


def steps_of(data: PairsWithOrigins, micro: int, steps: int, tmp_path: Path) -> list[list[int]]:
    """The pairs of each of the first steps, by a run in which nothing is wrong."""
    seen: list[list[int]] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            seen.append(batch.index.tolist())

    fit(make_module(SpoiledCalDPO(beta=0.5)), data, tmp_path / "order", max_steps=steps, callbacks=[Look()])
    return seen


def test_a_nonfinite_loss_is_reported_with_step_row_and_term_before_the_update(tmp_path: Path) -> None:
    order = steps_of(PairsWithOrigins(tiny_pairs(16), tiny_pairs(3), 4), 4, 4, tmp_path)
    row = order[2][1]
    module = guarded_module()
    with pytest.raises(CaldpoError) as stopped:
        fit(module, PairsWithOrigins(pairs_with_spoiled(16, [row]), tiny_pairs(3), 4), tmp_path, max_steps=4)
    message = str(stopped.value)
    replay = f"replay={tmp_path / 'nonfinite_batches' / 'step-2.json'}"
    names(stopped, "loss", "step 2", "1 of 4 pairs", "terms/calibration", f"train.jsonl:{row + 1}", remedy=replay)
    assert message.count("train.jsonl:") == 1
    with pytest.raises(CaldpoError):
        module.fetch_rows()  # there is no going on
    module.require_good_weights()  # and nothing against saving
    assert all(p.isfinite().all() for p in module.policy.parameters())
    dump = read_dump(tmp_path / "nonfinite_batches" / "step-2.json")
    assert [pair.index for pair in dump.pairs] == order[2]
    assert [math.isfinite(pair.values["terms/calibration"]) for pair in dump.pairs] == [i != row for i in order[2]]
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [0, 1, 2]


def test_a_nonfinite_gradient_of_finite_losses_is_reported_with_its_parameter(tmp_path: Path) -> None:
    with pytest.raises(CaldpoError) as stopped:
        fit(
            guarded_module(),
            PairsWithOrigins(tiny_pairs(16), tiny_pairs(3), 2),
            tmp_path,
            max_steps=3,
            callbacks=[SpoilGradient(1)],
        )
    message = str(stopped.value)
    names(message, "gradient", "step 1", "2 pairs", "train.jsonl:")
    assert message.count("model.layers.1.mlp.up_proj.weight") == 1
    assert dumps(tmp_path) == ["step-1.json"]


def test_a_step_fetched_after_its_update_is_reported_without_gradients(tmp_path: Path) -> None:
    """Rows and term are known all the same; the gradients that could be looked at are others."""
    module = guarded_module(metrics_sync_every=100)
    order = steps_of(PairsWithOrigins(tiny_pairs(16), tiny_pairs(3), 4), 4, 4, tmp_path)
    with pytest.raises(CaldpoError) as stopped:
        fit(module, PairsWithOrigins(pairs_with_spoiled(16, [order[1][0]]), tiny_pairs(3), 4), tmp_path, max_steps=4)
    message = str(stopped.value)
    names(message, "step 1", "terms/calibration", f"train.jsonl:{order[1][0] + 1}", "weights")
    assert "model.layers" not in message, "no gradient is named"
    with refused("step 1"):
        module.require_good_weights()
    assert dumps(tmp_path) == ["step-1.json"]  # what follows from it is not told again


class Look(pl.Callback):
    """Weights, optimiser state and learning rate after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, Any, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        state = copy.deepcopy((module.policy.state_dict(), optimizer.state_dict()["state"]))
        self.seen.append((*state, optimizer.param_groups[0]["lr"]))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_changes_nothing_but_the_count(accumulation: int, tmp_path: Path, capsys: Any) -> None:
    module, look = guarded_module("skip"), Look()
    keys: dict[str, Any] = {"max_steps": 5, "accumulate_grad_batches": accumulation, "gradient_clip_val": 1.0}
    fit(
        module, PairsWithOrigins(tiny_pairs(20), tiny_pairs(3), 2), tmp_path, callbacks=[SpoilGradient(2), look], **keys
    )
    ends = look.seen[accumulation - 1 :: accumulation]
    (before, state_before, _), (after, state_after, _) = ends[1:3]
    for name, value in before.items():
        assert torch.equal(value, after[name])
    for number, state in state_before.items():
        for name, value in state.items():
            assert torch.equal(value, state_after[number][name])
    assert any(not torch.equal(value, ends[3][0][name]) for name, value in after.items())  # and then goes on
    assert [end[2] for end in ends] == pytest.approx([0.01 * (5 - n) / 5 for n in range(1, 6)])  # as does the schedule
    rows = pd.read_csv(tmp_path / "metrics.csv").dropna(subset="loss")
    assert rows["step"].tolist() == [0, 1, 2, 3, 4]
    assert rows["skipped_steps"].tolist() == [0, 0, 1, 1, 1]
    assert module.latest["skipped_steps"] == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "skipped (" in line)
    names(line, 1, 100, "gradient", "step 2")
    assert dumps(tmp_path) == ["step-2.json"]


@pytest.mark.parametrize("bound", [0, 2])
def test_the_number_of_skipped_steps_is_limited(bound: int, tmp_path: Path) -> None:
    module = guarded_module("skip", max_skipped=bound)
    with refused(bound, f"step {1 if bound == 0 else 4}", key="trainer.max_skipped_steps"):
        fit(
            module,
            PairsWithOrigins(tiny_pairs(16), tiny_pairs(3), 2),
            tmp_path,
            max_steps=6,
            callbacks=[SpoilGradient(1, 3, 4)],
        )
    assert all(p.isfinite().all() for p in module.policy.parameters())


def test_a_full_disk_does_not_hide_why_the_run_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **keys: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("caldpo.nonfinite.guard.dump_step", full)
    with refused("gradient", "step 1", "No space left on device"):
        fit(
            guarded_module(),
            PairsWithOrigins(tiny_pairs(8), tiny_pairs(3), 2),
            tmp_path,
            max_steps=2,
            callbacks=[SpoilGradient(1)],
        )


def test_micro_batches_are_dropped_once_their_step_is_checked(tmp_path: Path) -> None:
    module = guarded_module(metrics_sync_every=3)
    fit(module, PairsWithOrigins(tiny_pairs(20), tiny_pairs(3), 2), tmp_path, max_steps=8, accumulate_grad_batches=2)
    assert module.nonfinite._steps == {}
    assert module.nonfinite._open == []


def test_steps_that_float16_skips_by_itself_count_and_are_limited() -> None:
    """An overflow of scaled gradients is no fault, until there are too many; a loss that is no number always is."""
    watch = NonFiniteGuard("stop", max_skipped=2)
    module: Any = SimpleNamespace(scales_gradients=True)
    for step, norm in enumerate([math.inf, 1.0, math.nan]):
        assert watch.check(module, step, {"loss": 0.5, "grad_norm": norm}, before_update=False) is None
    assert watch.skipped == 2
    error = watch.check(module, 3, {"loss": 0.5, "grad_norm": math.inf}, before_update=False)
    assert error is not None
    names(error, "float16", "step 3", 2, key="trainer.max_skipped_steps")


def test_a_resumed_run_continues_the_counters(tmp_path: Path) -> None:
    first = guarded_module("skip", max_skipped=1)
    data = PairsWithOrigins(tiny_pairs(16), tiny_pairs(3), 2)
    fit(
        first,
        data,
        tmp_path / "first",
        max_steps=3,
        val_check_interval=2,
        gradient_clip_val=1e-3,
        callbacks=[SpoilGradient(1)],
    )
    state = first.training_state()
    rows = pd.read_csv(tmp_path / "first" / "metrics.csv")
    assert state["rows"] == len(rows) == 4
    assert state["evaluated_at"] == 2
    torch.save(state, tmp_path / "state.pt")
    second = guarded_module("skip", max_skipped=1)
    second.restore_training_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.training_state() == state
    with refused(1, key="trainer.max_skipped_steps"):  # the second of both stretches together
        fit(second, data, tmp_path / "second", max_steps=3, gradient_clip_val=1e6, callbacks=[SpoilGradient(1)])
    clipped = pd.read_csv(tmp_path / "second" / "metrics.csv")["clip_fraction"].tolist()
    assert clipped == pytest.approx([2 / 4, 2 / 5])  # two of the first three were clipped: the skipped one has no norm


def test_rows_pending_on_the_device_count_as_written(tmp_path: Path) -> None:
    module, counts = guarded_module(metrics_sync_every=100), []

    class Count(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            counts.append((module.training_state()["rows"], module.rows_written))

    fit(module, PairsWithOrigins(tiny_pairs(16), tiny_pairs(3), 4), tmp_path, max_steps=3, callbacks=[Count()])
    assert counts == [(1, 0), (2, 0), (3, 0)]
    assert module.rows_written == len(pd.read_csv(tmp_path / "metrics.csv"))


@pytest.mark.slow
def test_ranks_agree_and_report_the_row_of_the_other_rank(tmp_path: Path) -> None:
    """The bad pair is on the second rank; both stop, or both skip, and the first one speaks."""
    output = train_on_ranks("ddp", tmp_path)
    for action in ("stop", "skip"):
        folder = tmp_path / action
        messages = [(folder / f"message-{rank}.txt").read_text() for rank in (0, 1)]
        if action == "stop":
            names(messages[0], "step 1", "1 of 4 pairs", "terms/calibration", "train.jsonl:")
        assert messages == [messages[0] if action == "stop" else "1 skipped, 3 steps"] * 2
        assert dumps(folder) == ["step-1-rank-0.json", "step-1-rank-1.json"]
        finite = [
            all(math.isfinite(pair.values["loss"]) for pair in read_dump(file).pairs)
            for file in sorted((folder / "nonfinite_batches").iterdir())
        ]
        assert finite == [True, False]
    (line,) = (line for line in output.splitlines() if "skipped (" in line)
    names(line, 1, 100, "step 1")
