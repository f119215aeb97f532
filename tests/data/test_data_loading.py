"""The loader under a real Trainer: epochs, accumulation, and going on in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint

from caldpo.data.batching import StepPlan
from caldpo.data.data_loading import PairBatches, PairLoader
from caldpo.data.pair import TokenizedPair
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.types import PairBatch

PAIRS, BATCH, ACCUMULATION = 23, 2, 3  # steps of 6, 6, 6 and 5 pairs


class Recorder(LightningModule):
    """Notes which pairs each optimiser step saw; its one weight sums what the pairs are worth."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.window: list[PairBatch] = []
        self.steps: list[tuple[int, list[int], set[int]]] = []  # epoch, pairs, what the batches say of the step
        self.validated: list[list[int]] = []

    def training_step(self, batch: PairBatch, _: int) -> torch.Tensor:
        self.window.append(batch)
        return self.weight * batch.index.sum()

    def on_before_optimizer_step(self, _: Any) -> None:
        pairs = [i for b in self.window for i in b.index[b.weight > 0].tolist()]
        self.steps.append((self.current_epoch, pairs, {b.step_pairs for b in self.window}))
        self.window = []

    def on_validation_epoch_start(self) -> None:
        self.validated.append([])

    def validation_step(self, batch: PairBatch, _: int) -> None:
        self.validated[-1].extend(batch.index.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def loader(seed: int | None = 11, workers: int = 0, accumulation: int = ACCUMULATION) -> PairLoader:
    pairs = TokenizedPairs(TokenizedPair([1], [i, 2], [i + 1, 2], None, None, i, f"f:{i}") for i in range(PAIRS))
    sampler = StepPlan(PAIRS, BATCH, accumulation=accumulation, seed=seed).sampler()
    return PairLoader(PairBatches(pairs, 0), sampler, workers=workers)


def fit(folder: Path, workers: int = 0, resume: Path | None = None, epochs: int = 3, **settings: Any) -> Recorder:
    module = Recorder()
    checkpoints = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, monitor=None)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        max_epochs=epochs,
        accumulate_grad_batches=ACCUMULATION,
        callbacks=[checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, loader(workers=workers), loader(seed=None, accumulation=1), ckpt_path=resume)
    return module


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return fit(folder), folder


def test_each_epoch_has_every_pair_once_in_an_order_of_its_own(whole_run: tuple[Recorder, Path]) -> None:
    steps = whole_run[0].steps
    assert [(epoch, len(pairs), sizes) for epoch, pairs, sizes in steps] == [
        (epoch, size, {size}) for epoch in range(3) for size in (6, 6, 6, 5)
    ]
    orders = [[i for epoch, pairs, _ in steps if epoch == e for i in pairs] for e in range(3)]
    assert all(sorted(order) == list(range(PAIRS)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    sampler = StepPlan(PAIRS, BATCH, accumulation=ACCUMULATION, seed=11).sampler()
    for epoch, order in enumerate(orders):
        sampler.set_epoch(epoch)
        assert order == [row for batch in sampler for row in batch.rows]


def test_validation_goes_through_the_split_in_order_each_time(whole_run: tuple[Recorder, Path]) -> None:
    sanity_check, *passes = whole_run[0].validated
    assert sanity_check == [0, 1, 2, 3]
    assert passes == [list(range(PAIRS))] * 3


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 11])  # within epochs and (4, 8) at their ends
def test_a_resumed_run_sees_the_pairs_of_an_uninterrupted_one(
    whole_run: tuple[Recorder, Path], tmp_path: Path, step: int
) -> None:
    whole, folder = whole_run
    resumed = fit(tmp_path, resume=folder / f"step={step}.ckpt")
    assert resumed.steps == whole.steps[step:]
    assert torch.equal(resumed.weight, whole.weight)


def test_workers_run_ahead_and_the_position_counts_consumed_batches(
    whole_run: tuple[Recorder, Path], tmp_path: Path
) -> None:
    whole, _ = whole_run
    first = fit(tmp_path, workers=1, max_steps=6)
    resumed = fit(tmp_path, workers=1, resume=tmp_path / "step=6.ckpt")
    assert first.steps + resumed.steps == whole.steps


def test_an_epoch_that_was_cut_short_does_not_shift_the_next(tmp_path: Path) -> None:
    cut = fit(tmp_path, epochs=2, limit_train_batches=6)
    full = StepPlan(PAIRS, BATCH, accumulation=ACCUMULATION, seed=11).sampler()
    for epoch in (0, 1):
        full.set_epoch(epoch)
        expected = [row for batch in list(full)[:6] for row in batch.rows]
        assert [i for e, pairs, _ in cut.steps if e == epoch for i in pairs] == expected


def test_state_without_a_trainer() -> None:
    one = loader()
    one.sampler.set_epoch(1)
    whole = [b.index.tolist() for b in one]
    batches = iter(one)
    for _ in range(5):
        next(batches)
    other = loader()
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict()
    other.sampler.set_epoch(1)
    assert [b.index.tolist() for b in other] == whole[5:]
    assert [b.index.tolist() for b in other] == whole  # and from the beginning again
    assert len(other) == len(whole)


def test_passes_leave_the_global_generator_alone() -> None:
    """Otherwise a run with another number of passes, or a resumed one, would draw other dropout masks."""
    seed_everything(0, verbose=False)
    expected = torch.rand(3)
    seed_everything(0, verbose=False)
    list(loader())
    list(loader())
    assert torch.equal(torch.rand(3), expected)
