"""Optimisers: which parameters decay, and the learning rate at every step."""

from __future__ import annotations

import math

import pytest
import torch

from caldpo.optim import AdamW, RMSprop, Schedule, decay_groups
from tests.tiny import tiny_model


def rates(schedule: Schedule, total: int, lr: float = 1.0) -> list[float]:
    """Learning rate of each of ``total`` steps."""
    built = AdamW(schedule, lr=lr).build(torch.nn.Linear(2, 2), total)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert built["lr_scheduler"]["interval"] == "step"
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_constant_after_warm_up() -> None:
    assert rates(Schedule("constant", warmup_steps=4), 7) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_linear_ends_at_zero() -> None:
    assert rates(Schedule("linear", warmup_steps=0), 4) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_cosine_by_formula() -> None:
    found = rates(Schedule("cosine", warmup_ratio=0.2), 10, lr=3.0)
    expected = [0, 1.5] + [1.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert found == pytest.approx(expected)


def test_steps_win_over_the_ratio() -> None:
    assert rates(Schedule("constant", warmup_steps=1, warmup_ratio=0.9), 3) == pytest.approx([0, 1, 1])


def test_weight_decay_spares_vectors_and_frozen_parameters() -> None:
    model = tiny_model("gpt2")
    next(model.parameters()).requires_grad_(False)
    groups = decay_groups(model, 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.ndim >= 2 for p in groups[0]["params"])
    assert all(p.ndim < 2 for p in groups[1]["params"])
    trainable = sum(p.requires_grad for p in model.parameters())
    assert sum(len(g["params"]) for g in groups) == trainable == len(list(model.parameters())) - 1


def test_settings_arrive() -> None:
    layer = torch.nn.Linear(2, 2)
    adamw = AdamW(Schedule(), lr=0.1, beta1=0.8, beta2=0.9, eps=1e-6).build(layer, 10)["optimizer"]
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.8, 0.9), 1e-6)
    rmsprop = RMSprop(Schedule(), lr=0.1, smoothing=0.95).build(layer, 10)["optimizer"]
    assert isinstance(rmsprop, torch.optim.RMSprop)
    assert rmsprop.defaults["alpha"] == 0.95
