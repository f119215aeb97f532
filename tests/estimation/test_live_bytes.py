"""Live bytes against storages counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from caldpo.estimation.step_memory import CASTS, GRADIENTS, HEAD, OTHER, WEIGHTS, LiveBytes

FLOAT = 4


def test_a_storage_counts_once_and_until_it_is_freed() -> None:
    with LiveBytes() as live:
        x = torch.ones(10, 10)
        views = [x.T, x[1:], x.flatten()]
        assert live.total == 100 * FLOAT
        y = x + 1
        assert live.total == 200 * FLOAT
        y.add_(1)  # in place: nothing new
        assert live.total == 200 * FLOAT
        del x
        assert live.total == 200 * FLOAT  # its views still hold it
        del views
        assert live.total == 100 * FLOAT
    assert live.peak == 200 * FLOAT
    del y
    assert live.total == 0


def test_kinds() -> None:
    layer = nn.Linear(8, 50, bias=False)
    layer.weight.grad = torch.zeros_like(layer.weight)
    with LiveBytes(layer, vocab_size=50) as live:
        assert live.live == {WEIGHTS: 400 * FLOAT, GRADIENTS: 400 * FLOAT}
        hidden = torch.zeros(3, 8)
        logits = hidden @ layer.weight.T
        narrow = layer.weight.to(torch.bfloat16)
        assert live.live == {
            WEIGHTS: 400 * FLOAT,
            GRADIENTS: 400 * FLOAT,
            OTHER: 24 * FLOAT,
            HEAD: 150 * FLOAT,
            CASTS: 400 * 2,
        }
        del logits, narrow
        assert live.live[HEAD] == live.live[CASTS] == 0
    assert live.largest[HEAD] == 150 * FLOAT
    assert live.peak == live.total + 150 * FLOAT + 400 * 2
