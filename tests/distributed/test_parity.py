"""Two processes (gloo, CPU), with whole models or sharded ones, train as one does: metrics and final weights."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.evaluation.runs import write_data
from tests.resume.runs import BASE, NOT_THE_RUN, train

pytestmark = pytest.mark.slow

# 40 training pairs in steps of 6: the last of an epoch has 4; 40 held-out pairs in batches of 16
STEPS = ("trainer.max_epochs=2", "callbacks.checkpoint.every=null", "trainer.val_check_interval=5")
WHOLE = ("data.micro_batch_size=6", "trainer.accumulate_grad_batches=1")
DIVIDED = {1: ("data.micro_batch_size=3", "trainer.accumulate_grad_batches=1")}
DIVIDED[3] = ("data.micro_batch_size=1", "trainer.accumulate_grad_batches=3")


def ran(place: Path, name: str, *more: str, ranks: int = 1) -> Path:
    ended = train(place, *BASE, *STEPS, *more, f"hydra.run.dir={name}", ranks=ranks)
    assert set(ended.codes) == {0}, ended.said
    return place / name


def table(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "metrics.csv").drop(columns=list(NOT_THE_RUN))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_data(folder)
    return folder


# cpo has a term that is a mean over tokens, and no reference in its loss
@pytest.fixture(scope="module", params=[("packed", "cal_dpo"), ("padded", "cpo")], ids=" ".join)
def alone(request: pytest.FixtureRequest, place: Path) -> tuple[Path, tuple[str, ...]]:
    layout, loss = request.param
    words = (f"layout={layout}", f"loss={loss}")
    return ran(place, f"one-{layout}", *words, *WHOLE), words


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_as_one_does(
    strategy: str, accumulation: int, alone: tuple[Path, tuple[str, ...]], place: Path
) -> None:
    one, words = alone
    ranks = ("trainer.devices=2", f"trainer.strategy={strategy}", *DIVIDED[accumulation])
    two = ran(place, f"{one.name}-{strategy}-{accumulation}", *words, *ranks, ranks=2)
    expected, found = table(one), table(two)
    assert len(expected) == 2 * 7 + 4  # steps, and evaluations at 0, 5, 10 and the end
    assert list(found.columns) == list(expected.columns)
    for name in expected:
        assert found[name].isna().equals(expected[name].isna()), name
        # relative to the sizes that the differences of log-probs come from
        allowed = 1e-6 * (1 + expected[name].abs()) if name != "grad_norm" else 5e-6 * expected[name]
        assert not ((found[name] - expected[name]).abs() > allowed).any(), name
    weights, others = (load_file(run / "policy" / "model.safetensors") for run in (one, two))
    assert others.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-6)
    assert (two / "samples.jsonl").read_text() == (one / "samples.jsonl").read_text()


def test_two_ranks_differ_by_float32_rounding_alone(place: Path) -> None:
    """Two ranks sum gradients in another order; in float64 nothing is left of what that does."""
    words = ("loss=ipo", "trainer.precision=64-true")
    one = ran(place, "one-64", *words, *WHOLE)
    two = ran(place, "two-64", *words, *DIVIDED[1], "trainer.devices=2", "trainer.strategy=ddp", ranks=2)
    expected, found = table(one), table(two)
    for name in expected:
        torch.testing.assert_close(
            torch.tensor(found[name].to_numpy()), torch.tensor(expected[name].to_numpy()), rtol=1e-13, atol=1e-13,
            equal_nan=True, msg=name,
        )  # fmt: skip
    weights, others = (load_file(run / "policy" / "model.safetensors") for run in (one, two))
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-14)


def test_tied_weights_and_recomputed_activations(place: Path) -> None:
    words = ("model.tie_word_embeddings=true", "model.gradient_checkpointing=true", "optim=rmsprop")
    one = ran(place, "one-tied", *words, *WHOLE)
    two = ran(place, "two-tied", *words, *DIVIDED[1], "trainer.devices=2", "trainer.strategy=fsdp", ranks=2)
    weights, others = (load_file(run / "policy" / "model.safetensors") for run in (one, two))
    assert others.keys() == weights.keys()
    assert "lm_head.weight" not in weights
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reference", ["auto", "adapter", "frozen"])
def test_adapters(reference: str, place: Path) -> None:
    pytest.importorskip("peft")
    words = ("adapter=lora", f"reference={reference}")
    one = ran(place, f"one-lora-{reference}", *words, *WHOLE)
    ranks = (*DIVIDED[1], "trainer.devices=2", "trainer.strategy=fsdp")
    two = ran(place, f"two-lora-{reference}", *words, *ranks, ranks=2)
    weights, others = (load_file(run / "policy" / "adapter_model.safetensors") for run in (one, two))
    assert others.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("more", [(), ("trainer.cpu_offload=true",)], ids=["one device", "in main memory"])
def test_sharding_by_itself_changes_nothing(more: tuple[str, ...], place: Path) -> None:
    """Over one device, and over two with their parts in main memory (here it is the same memory)."""
    ranks = 2 if more else 1
    words = (*DIVIDED[1], f"trainer.devices={ranks}") if more else WHOLE
    plain = ran(place, f"plain-{ranks}", *words, f"trainer.strategy={'fsdp' if more else 'auto'}", ranks=ranks)
    other = ran(place, f"other-{ranks}", *words, "trainer.strategy=fsdp", *more, ranks=ranks)
    assert table(other).equals(table(plain))
