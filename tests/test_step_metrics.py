"""Rows of metrics stay on the device until they are fetched together, and none is lost or misplaced."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from caldpo.checkpointing.checkpoint_callback import Checkpoints
from caldpo.checkpointing.checkpoint_io import load_weights
from caldpo.data.batching import StepPlan
from caldpo.data.collate import collate
from caldpo.data.data_loading import PairBatches, PairLoader
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.lightning_module import PreferenceModule
from caldpo.lightning_trainer import StepProgress
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.losses.cal_dpo import CalDPO
from caldpo.step_metrics import StepMetrics
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_batch, tiny_pairs
from tests.helpers.tiny_trainer import Pairs, fit, make_module

TIMES = ["tokens_per_second"]


def data(pairs: int = 24) -> Pairs:
    return Pairs(tiny_pairs(pairs), tiny_pairs(6), 4)


def delayed(metrics_sync_every: int, lr: float = 1e-2) -> PreferenceModule:
    module = make_module(CalDPO(beta=0.5), lr=lr)
    module.metrics_sync_every = metrics_sync_every
    return module


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv")


@pytest.mark.parametrize("metrics_sync_every", [2, 4, 100])
def test_rows_are_those_of_a_fetch_at_every_step(metrics_sync_every: int, tmp_path: Path) -> None:
    """11 steps, evaluated after 3, 6 and 9: windows end at evaluations and at the end, whole or not."""
    found = []
    for every in (1, metrics_sync_every):
        folder = tmp_path / str(every)
        keys = {"max_steps": 11, "val_check_interval": 3, "gradient_clip_val": 100.0, "accumulate_grad_batches": 2}
        module = delayed(every)
        fit(module, data(), folder, **keys)
        assert module.train_metrics.pending == []
        found.append((rows_of(folder).drop(columns=TIMES), module.latest))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    train = found[1][0].dropna(subset="loss")
    assert train["step"].tolist() == list(range(11))
    assert 0 < train["clip_fraction"].iloc[-1] < 1
    without = [{k: v for k, v in latest.items() if k not in TIMES} for _, latest in found]
    assert without[0] == without[1]


def test_fetches_come_at_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[list[int]] = []
    real = StepMetrics.fetch

    def fetch(log: StepMetrics) -> Any:
        rows = real(log)
        if rows:
            fetched.append([step for step, _ in rows])
        return rows

    monkeypatch.setattr(StepMetrics, "fetch", fetch)
    fit(delayed(4), data(), tmp_path, max_steps=11, val_check_interval=6)
    assert fetched == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10]]


def test_a_checkpoint_has_its_rows_on_disk(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if (trainer.global_step, trainer.fit_loop.batch_idx) == (5, 5):
                seen.append(rows_of(tmp_path)["step"].tolist())

    fit(delayed(100), data(), tmp_path, max_steps=6, callbacks=[Checkpoints(every=5), Look()])
    assert seen == [[0, 1, 2, 3, 4]]  # written with the save after five steps, before the sixth


def test_rows_are_written_before_an_exception_leaves(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fit(delayed(100), data(), tmp_path, max_steps=6, callbacks=[Stop()])
    assert rows_of(tmp_path)["step"].tolist() == [0, 1, 2]


class Break(pl.Callback):
    """Makes the gradient of one step something that is not a number."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            next(p for p in module.parameters() if p.grad is not None).grad[0] = float("nan")


def test_a_bad_gradient_is_named_by_its_step_and_never_saved(tmp_path: Path) -> None:
    """Bad at step 5, noticed at the save after 8; the checkpoint after 4 is the last there is."""
    module = delayed(100)
    callbacks = [Checkpoints(every=4, keep="all"), Break(5)]
    with refused("gradient", "step 5"):
        fit(module, data(48), tmp_path, max_steps=12, callbacks=callbacks)
    saved = list((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["step-4"]
    assert all(value.isfinite().all() for value in load_weights(saved[0]).values())
    table = rows_of(tmp_path)
    assert table["step"].tolist() == list(range(8))  # with the rows that show it
    assert table["grad_norm"].isna().tolist() == [False] * 5 + [True] * 3
    trainer = pl.Trainer(logger=False, accelerator="cpu", barebones=True)
    trainer.strategy.connect(module)
    with refused("step 5"):  # and at every later attempt
        module.on_save_checkpoint({})


def test_with_a_fetch_at_every_step_no_bad_gradient_meets_the_weights(tmp_path: Path) -> None:
    module = delayed(1)
    with refused("gradient", "step 2"):
        fit(module, data(), tmp_path, max_steps=6, callbacks=[Break(2)])
    assert all(p.isfinite().all() for p in module.policy.parameters())


def test_throughput_of_a_window_is_its_tokens_over_its_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("caldpo.step_metrics.time.perf_counter", lambda: now[0])
    log = StepMetrics()
    log.start(torch.device("cpu"))
    batch = tiny_batch(5)
    tokens = int(batch.response_lengths.sum())
    values = {"loss": torch.ones(5)}
    for step in range(3):
        now[0] += 2.0  # the host's clock runs, and says nothing until the device has been waited for
        log.add(values, batch)
        log.add(values, batch)
        log.close(step, torch.tensor(1.0), None, 0.1)
    now[0] += 4.0
    rates = [metrics["tokens_per_second"] for _, metrics in log.fetch()]
    assert rates == pytest.approx([6 * tokens / 10.0] * 3)
    log.pause()
    now[0] += 100.0
    log.resume()
    now[0] += 1.0
    log.add(values, batch)
    log.close(3, torch.tensor(1.0), None, 0.1)
    assert log.fetch()[0][1]["tokens_per_second"] == pytest.approx(tokens)
    assert log.fetch() == []


def test_clipped_steps_are_counted_over_fetches() -> None:
    log = StepMetrics()
    batch = tiny_batch(2)
    shares = []
    for step, norm in enumerate([0.5, 2.0, 3.0, 1.0, 5.0]):
        log.add({"loss": torch.ones(2)}, batch)
        log.close(step, torch.tensor(norm), 1.0, 0.1)
        if step in (2, 4):
            shares += [metrics["clip_fraction"] for _, metrics in log.fetch()]
    assert shares == pytest.approx([0, 1 / 2, 2 / 3, 2 / 4, 3 / 5])


def test_the_bar_shows_what_was_fetched_last(tmp_path: Path) -> None:
    module = delayed(3)
    shown: list[dict[str, Any]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            shown.append(StepProgress().get_metrics(trainer, module))

    fit(module, data(), tmp_path, max_steps=5, callbacks=[Look()])
    losses = rows_of(tmp_path)["loss"].tolist()
    assert shown[:2] == [{}, {}]
    assert [s["loss"] for s in shown[2:]] == [losses[2]] * 3
    assert all(isinstance(v, float) for s in shown for v in s.values())


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers taken out of tensors, results whose size is data."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waiting = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal.", "unique")
        self.count += any(str(func).removeprefix("aten.").startswith(name) for name in waiting)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Also counts methods that read a CPU tensor's memory without an operation."""
    with Waits() as waits, monkeypatch.context() as patch:
        for name in ("tolist", "cpu", "numpy"):
            real = getattr(Tensor, name)

            def reads(tensor: Tensor, *args: Any, real: Any = real, **keys: Any) -> Any:
                waits.count += 1
                return real(tensor, *args, **keys)

            patch.setattr(Tensor, name, reads)
        yield waits


class Packed(Pairs):
    """The same pairs without padding."""

    def loader(self, pairs: TokenizedPairs, micro: int, **keys: Any) -> PairLoader:
        return PairLoader(PairBatches(pairs, 0, layout="packed"), StepPlan(len(pairs), micro, **keys).sampler())


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_no_step_waits_for_the_device(
    clip: float | None, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward, metrics, clipping and update of 10 steps in which the host takes no number."""
    module = delayed(4)
    if layout == "packed":
        for model in (module.policy, module.reference.model):
            use_packed_attention(model)
    else:  # for SDPA transformers itself looks whether a mask masks anything, and waits for the answer
        for model in (module.policy, module.reference.model):
            model.set_attn_implementation("eager")
    at: list[int] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            at.append(waits.count)

    keys = {"max_steps": 10, "gradient_clip_val": clip, "accumulate_grad_batches": 2, "callbacks": [Look()]}
    with counted(monkeypatch) as waits:
        fit(module, (Packed if layout == "packed" else Pairs)(tiny_pairs(40), tiny_pairs(4), 2), tmp_path, **keys)
    steps = at[1::2]
    # steps 3 and 7 (from 0) fetch, once each
    # the first fetch brings the log-ratios of the first step as well, which have to be 0
    assert [b - a for a, b in itertools.pairwise(steps)] == [0, 0, 2, 0, 0, 0, 1, 0, 0]


def test_throughput_counts_the_same_in_every_layout_and_no_filler() -> None:
    """A prompt that is computed twice, or a pair that evens out ranks, is no more work done."""
    pairs = tiny_pairs(4)
    rates = []
    for layout in ("packed", "padded"):
        batch = collate(list(pairs), 0, layout=layout)
        batch.weight[1] = 0
        log = StepMetrics()
        log.add({"loss": torch.ones(4)}, batch)
        rates.append(float(log.tokens))
    assert rates == [sum(len(p.chosen_ids) + len(p.rejected_ids) for i, p in enumerate(pairs) if i != 1)] * 2
