"""Runs whose loss reads whole optimiser steps, by the command: what is refused, chosen, and written."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch

from caldpo.estimate import main as estimate
from caldpo.lightning_module import PreferenceModule
from caldpo.losses.bco import BCO
from caldpo.losses.kto import KTO
from caldpo.models.random_init import RandomModel
from caldpo.nonfinite.locate import SeenBatch
from caldpo.nonfinite.step_dump import dump_step, read_dump
from caldpo.reference.frozen_model import FrozenReference
from caldpo.replay.inspected_pass import run_pass
from caldpo.replay.replay_run import batches_of
from caldpo.types import PairBatch, PairLogps, assembler
from tests.evaluation.runs import TINY_RUN, inside, write_data
from tests.helpers.command import call, train
from tests.helpers.messages import names
from tests.helpers.tiny import tiny_batch, tiny_model
from tests.helpers.tiny_trainer import make_module
from tests.resume.runs import train as train_apart

Captured = pytest.CaptureFixture[str]
SMALL = (*TINY_RUN, "trainer.max_steps=2", "data.preview_pairs=0", "optim.schedule.warmup_steps=0")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("reference=precomputed",), ("reference", "precomputed", "reference=frozen")),
        (("data.micro_batch_size=1",), ("data.micro_batch_size", "one pair")),
        (
            ("data.streaming=true", "data.micro_batch_size=2000"),
            ("data.streaming", "1,000", "data.streaming=false"),
        ),
    ],
)
def test_what_mismatched_responses_cannot_have(
    given: tuple[str, ...], named: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Refused before weights load, for KTO alone."""
    monkeypatch.setattr(RandomModel, "load_policy", lambda _: pytest.fail("weights have loaded"))
    with inside(place):
        train(*SMALL, "loss=kto", *given, fails=1)
    names(capsys.readouterr().err, *named)
    monkeypatch.undo()
    if given != ("reference=precomputed",):
        return
    with inside(place):
        train(*SMALL, "loss=bco", *given)


def test_auto_keeps_the_reference_for_mismatched_responses(place: Path, capsys: Captured) -> None:
    """Also where its log-probs would be computed first for another loss, and held-out pairs have their own z."""
    with inside(place):
        train(*SMALL, "loss=kto", "trainer.max_epochs=2", "trainer.max_steps=null", "hydra.run.dir=run")
        names(capsys.readouterr().out, "reference frozen")
        table = pd.read_csv("run/metrics.csv").set_index("step")
    held_out = table["val/diagnostics/kl"].dropna()
    assert held_out.iloc[0] == 0  # the policy is the reference
    assert table["val/loss"].dropna().iloc[0] == pytest.approx(1.0)
    assert (table["diagnostics/kl"].dropna() >= 0).all()


def test_a_stream_trains(place: Path) -> None:
    with inside(place):
        train(*SMALL, "loss=kto", "data.streaming=true", "reference=frozen", "hydra.run.dir=run")
        assert json.loads(Path("run/summary.json").read_text())["steps"] == 2


@pytest.mark.parametrize(("loss", "passes"), [("bco", 1), ("kto", 2)])
def test_the_estimate_counts_what_is_read_ahead(loss: str, passes: int, place: Path) -> None:
    """A forward pass over each pair of a step, and over its mismatched responses."""
    found = {}
    for name in ("dpo", loss):
        with inside(place):
            call(estimate, [*SMALL, f"loss={name}", "reference=frozen", f"hydra.run.dir={name}"], None)
            found[name] = json.loads(Path(f"{name}/estimate.json").read_text())["flops"]
    plain, ahead = found["dpo"], found[loss]
    assert "read-ahead" not in plain
    assert ahead["read-ahead"] == pytest.approx(passes * plain["forward"])
    for part in ("reference", "evaluation"):
        assert ahead[part] == pytest.approx(passes * plain[part])
    for part in ("forward", "backward", "recompute"):
        assert ahead[part] == plain[part]
    assert ahead["total"] == pytest.approx(sum(value for part, value in ahead.items() if part != "total"))


@pytest.mark.parametrize("loss", [BCO(beta=0.5), KTO(beta=0.5)])
def test_a_dump_has_what_was_read_of_other_ranks(loss: BCO | KTO, tmp_path: Path) -> None:
    """A replayed share of a step has the statistics of the whole step, as the run had them."""
    batch, module = tiny_batch(3), make_module(loss)
    batch.step_pairs = 8
    reference = FrozenReference(tiny_model(seed=1))
    name = next(iter(loss.observe(assembled(module, reference, batch)).per_pair))
    logps = assembled(module, reference, batch, {name: torch.tensor([0.3, 0.3, 0.3])})
    seen = SeenBatch(batch, logps, {"loss": loss(logps).loss})
    path = dump_step(tmp_path, 3, [seen], reason="", rank=0, ranks=2, loss="", formula="")
    dump = read_dump(path)
    assert [pair.of_step() for pair in dump.pairs] == [{name: pytest.approx(0.3)}] * 3
    again = run_pass(
        tiny_model(),
        reference,
        loss,
        batches_of(dump, 0, "padded"),
        dump.pairs,
        precision="32-true",
        context=nullcontext,
        logits_cache_mib=64,
    )
    for pair in again.pairs:
        assert pair.values["loss"] == pytest.approx(pair.then["loss"], rel=1e-5)
        assert math.isfinite(pair.values["loss"])


def assembled(
    module: PreferenceModule,
    reference: FrozenReference,
    batch: PairBatch,
    of_step: dict[str, torch.Tensor] | None = None,
) -> PairLogps:
    with torch.no_grad():
        return assembler(batch, reference.logps(batch), of_step)(*module.engine(batch), slice(None))


@pytest.mark.slow
def test_sharded_weights_give_the_same_run(place: Path) -> None:
    """Both ranks run every pass, mismatched ones and filler too; 38 pairs in steps of 8, the last of 6."""
    given = (*SMALL, "loss=kto", "reference=frozen", "trainer.max_steps=5", "data.max_train_pairs=38")
    tables = []
    for ranks, more in ((1, ()), (2, ("trainer.devices=2", "trainer.strategy=fsdp", "data.micro_batch_size=2"))):
        accumulation = "trainer.accumulate_grad_batches=2" if ranks == 2 else "trainer.accumulate_grad_batches=1"
        ended = train_apart(place, *given, *more, accumulation, f"hydra.run.dir=run{ranks}", ranks=ranks)
        assert set(ended.codes) == {0}, ended.said
        tables.append(pd.read_csv(place / f"run{ranks}" / "metrics.csv").set_index("step"))
    for name in ("loss", "grad_norm", "diagnostics/kl", "val/loss", "val/diagnostics/kl"):
        one, two = (table[name].dropna() for table in tables)
        assert one.tolist() == pytest.approx(two.tolist(), rel=2e-3, abs=1e-4), name
