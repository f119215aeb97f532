"""Bytes of an optimiser against the real optimiser's state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from caldpo.estimation.fake_model import fake_tensors
from caldpo.estimation.optimizer_memory import optimizer_memory
from caldpo.optim import AdamW, RMSprop, Schedule
from caldpo.optim.torch_optimizers import Adafactor
from tests.helpers.tiny import tiny_model

SPECS: dict[str, Any] = {
    "adamw": AdamW(Schedule(), fused=False),
    "adamw, fused": AdamW(Schedule(), fused=True, weight_decay=0.1),
    "rmsprop": RMSprop(Schedule(), foreach=False),
    "rmsprop, foreach": RMSprop(Schedule()),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_state_is_the_real_one(name: str, dtype: torch.dtype, frozen: bool) -> None:
    model = tiny_model(dtype=dtype)
    model.get_input_embeddings().requires_grad_(not frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = SPECS[name].build(model, 10)["optimizer"]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    real = sum(s.nbytes for state in optimizer.state.values() for s in state.values() if isinstance(s, torch.Tensor))
    assert optimizer_memory(SPECS[name], trained, "cpu").state == real
    moments = 2 if "adamw" in name else 1
    assert real == pytest.approx(moments * sum(p.nbytes for p in trained), rel=0.02)


def test_temporaries_grow_with_all_weights_or_with_the_largest() -> None:
    trained = list(tiny_model().parameters())
    every, largest = sum(p.nbytes for p in trained), max(p.nbytes for p in trained)
    result = {name: optimizer_memory(spec, trained, "cpu").temporary for name, spec in SPECS.items()}
    assert result["adamw, fused"] < 0.1 * largest
    assert largest <= result["rmsprop"] <= 3 * largest
    assert every <= result["rmsprop, foreach"] <= 3 * every
    # PyTorch's own choice on a GPU, where neither way is asked for
    assert every <= optimizer_memory(SPECS["adamw"], trained, "cuda").temporary


def test_optimisers_that_read_values_are_measured_for_fake_weights_too() -> None:
    """Adafactor scales its step by the norm of each weight."""
    optim = Adafactor(Schedule())
    real = optimizer_memory(optim, list(tiny_model().parameters()), "cpu")
    with fake_tensors("cpu"):
        assert optimizer_memory(optim, list(tiny_model().parameters()), "cpu") == real
    assert real.state > 0
