"""Two processes (gloo, CPU) on ZeRO-2 train as one process does: metrics and final weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.test_parity import DIVIDED, WHOLE, ran, table
from tests.evaluation.runs import write_data

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

RANKS = ("trainer.devices=2", "trainer.strategy=deepspeed_stage_2")
WAYS = {  # the run, accumulation, and what the ranks have besides
    "packed": (("layout=packed", "loss=cal_dpo"), 3, ()),
    "padded-tied-recomputed-offload": (
        ("layout=padded", "loss=cpo", "model.tie_word_embeddings=true", "model.gradient_checkpointing=true"),
        3,
        ("trainer.cpu_offload=true",),
    ),
    "lora-frozen-rmsprop": (("adapter=lora", "reference=frozen", "optim=rmsprop"), 1, ()),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    write_data(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_as_one_does(way: str, place: Path) -> None:
    """The last step of an epoch has 4 pairs instead of 6, so that some micro-batches are empty."""
    words, accumulation, besides = WAYS[way]
    if "adapter=lora" in words:
        pytest.importorskip("peft")
    one = ran(place, f"one-{way}", *words, *WHOLE)
    two = ran(place, f"two-{way}", *words, *RANKS, *DIVIDED[accumulation], *besides, ranks=2)
    expected, found = table(one), table(two)
    assert len(expected) == 2 * 7 + 4  # steps, and evaluations at 0, 5, 10 and the end
    assert list(found.columns) == list(expected.columns)
    for name in expected:
        assert found[name].isna().equals(expected[name].isna()), name
        allowed = 1e-6 * (1 + expected[name].abs()) if name != "grad_norm" else 5e-6 * expected[name]
        assert not ((found[name] - expected[name]).abs() > allowed).any(), name
    file = "adapter_model.safetensors" if "adapter=lora" in words else "model.safetensors"
    weights, others = (load_file(run / "policy" / file) for run in (one, two))
    assert others.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-6)
    assert (two / "samples.jsonl").read_text() == (one / "samples.jsonl").read_text()
