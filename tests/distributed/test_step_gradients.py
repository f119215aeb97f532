"""Norm, clipping and discarding of a step's gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from caldpo.distributed.step_gradients import LocalGradients, clip_factor


def trained() -> nn.Sequential:
    """Two layers of which the second is frozen; the first one's gradients are 3 and 4."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).requires_grad_(False))
    model[0].weight.grad, model[0].bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    return model


def test_the_norm_is_over_all_gradients() -> None:
    assert LocalGradients(trained()).norm().item() == 5.0


@pytest.mark.parametrize(("largest", "scale"), [(2.5, 0.5), (5.1, 1.0)])
def test_clipping_uses_the_given_norm_and_never_scales_up(largest: float, scale: float) -> None:
    model = trained()
    LocalGradients(model).clip(largest, torch.tensor(5.0))
    assert model[0].bias.grad is not None
    assert model[0].bias.grad.item() == pytest.approx(4 * scale, rel=1e-6)
    assert clip_factor(largest, torch.tensor(5.0)).item() == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("norm", [0.0, 1e-9, 0.3, 7.0, math.inf, math.nan])
def test_partitions_are_clipped_as_pytorch_clips_full_gradients(norm: float) -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, -2.0, 3.0])
    expected = weight.grad * clip_factor(0.5, torch.tensor(norm))
    torch.nn.utils.clip_grads_with_norm_(weight, 0.5, torch.tensor(norm))
    torch.testing.assert_close(weight.grad, expected, rtol=0, atol=0, equal_nan=True)


def test_a_discarded_step_changes_neither_weights_nor_optimiser_state() -> None:
    model = trained()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    before = model[0].weight.item()
    LocalGradients(model).discard()
    optimizer.step()
    assert model[0].weight.item() == before
    assert not optimizer.state
