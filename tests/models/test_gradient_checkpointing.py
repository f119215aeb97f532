"""Recomputed activations give the gradients of kept ones, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from caldpo.logprobs import LogprobEngine
from caldpo.models.adapters import Lora
from caldpo.models.gradient_checkpointing import recomputing
from tests.estimation.test_step_memory import BATCH, SIZES, model


def gradients(policy: Any, layout: str, *, recompute: bool) -> tuple[list[Tensor | None], Tensor, int]:
    """Gradients of a loss, the next random number after it, and how often a feed-forward block began."""
    calls = 0

    def counting(*_: Any) -> None:
        nonlocal calls
        calls += 1

    blocks = [block for name, block in policy.named_modules() if name.endswith("mlp")]
    hooks = [block.register_forward_pre_hook(counting) for block in blocks]
    policy.zero_grad()
    engine = LogprobEngine(policy)
    assert engine.head is not None  # examined by running the model
    calls = 0
    torch.manual_seed(0)
    with recomputing(policy, recompute):
        loss, _, _ = engine.loss(BATCH[layout], lambda chosen, rejected, _: (chosen - rejected).sum())
    loss.backward()
    for hook in hooks:
        hook.remove()
    found = [None if p.grad is None else p.grad.clone() for p in policy.parameters()]
    return found, torch.cat([torch.rand(1), loss.detach()[None]]), calls // len(blocks)


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("dropout", "lora"), [(0.0, False), (0.3, False), (0.0, True)])
def test_gradients_are_bit_equal(architecture: str, layout: str, dropout: float, lora: bool) -> None:
    policy: Any = model(architecture, False, layout)
    if lora:
        policy = Lora(rank=4).apply(policy).train()
    for part in policy.modules():
        if isinstance(part, nn.Dropout):
            part.p = dropout
        elif hasattr(part, "attention_dropout") and not isinstance(part.attention_dropout, nn.Module):
            part.attention_dropout = dropout
    kept, after, once = gradients(policy, layout, recompute=False)
    recomputed, same, twice = gradients(policy, layout, recompute=True)
    assert (once, twice) == (1, 2)
    assert torch.equal(after, same)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in kept)
    for one, other in zip(kept, recomputed, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert not any(getattr(part, "gradient_checkpointing", False) for part in policy.modules()), "only in its context"
