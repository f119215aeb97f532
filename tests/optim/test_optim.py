"""Optimisers: which parameters decay, and the learning rate at every step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from transformers import get_scheduler

from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from caldpo.losses.dpo import DPO
from caldpo.optim import AdamW, RMSprop, Schedule, can_fuse, decay_groups
from caldpo.optim.optimizer_base import share_of
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_model, tiny_pairs
from tests.helpers.tiny_trainer import Pairs, make_module


def rates(schedule: Schedule, total: int, lr: float = 1.0) -> list[float]:
    """Learning rate of each of ``total`` steps."""
    built = AdamW(schedule, lr=lr).build(torch.nn.Linear(2, 2), total)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert built["lr_scheduler"]["interval"] == "step"
    actual = []
    for _ in range(total):
        actual.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return actual


def test_constant_after_warm_up() -> None:
    assert rates(Schedule("constant", warmup_steps=4), 7) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_linear_ends_at_zero() -> None:
    assert rates(Schedule("linear", warmup_steps=0), 4) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_cosine_by_formula() -> None:
    actual = rates(Schedule("cosine", warmup_ratio=0.2), 10, lr=3.0)
    expected = [0, 1.5] + [1.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_rates_are_those_of_transformers_bit_for_bit(decay: Literal["constant", "linear", "cosine"]) -> None:
    name = "constant_with_warmup" if decay == "constant" else decay
    for warmup, total in [(0, 1), (0, 7), (1, 1), (3, 97), (12, 120), (9, 5)]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=3e-4)
        theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
        expected = []
        for _ in range(total):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        schedule = Schedule(decay, warmup_steps=warmup)
        assert rates(schedule, total, lr=3e-4) == expected
        ours = AdamW(schedule, lr=3e-4).build(torch.nn.Linear(2, 2), total)["lr_scheduler"]["scheduler"]
        assert ours.state_dict().keys() == theirs.state_dict().keys()  # so that earlier checkpoints resume
        assert ours.state_dict()["lr_lambdas"] == [{}, {}]
        assert theirs.state_dict()["lr_lambdas"] == [{}]


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.37, 1.0])
def test_a_cosine_with_a_floor_is_that_of_transformers_bit_for_bit(floor: float) -> None:
    for warmup, total in [(0, 7), (3, 97), (9, 5)]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=3e-4)
        kwargs = {"min_lr_rate": floor}
        theirs = get_scheduler("cosine_with_min_lr", optimizer, warmup, total, scheduler_specific_kwargs=kwargs)
        expected = []
        for _ in range(total):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        assert rates(Schedule("cosine", warmup_steps=warmup, min_lr_ratio=floor), total, lr=3e-4) == expected


def test_a_linear_decay_ends_at_its_floor() -> None:
    actual = rates(Schedule("linear", warmup_steps=0, min_lr_ratio=0.2), 5)  # the fifth of five has yet to decay once
    assert actual == pytest.approx([1.0, 0.84, 0.68, 0.52, 0.36])


def test_a_floor_of_a_constant_rate_is_refused() -> None:
    with refused(key="min_lr_ratio", value=0.1, remedy="optim.schedule.decay"):
        Schedule("constant", min_lr_ratio=0.1)


def test_the_ratio_is_the_decimal_that_was_written() -> None:
    """k / 100 of n is k n // 100; the float product of 0.29 and 100 is below 29."""
    for k in range(101):
        for steps in (1, 7, 100, 12345):
            assert share_of(k / 100, steps) == k * steps // 100
    assert rates(Schedule("constant", warmup_ratio=0.29), 100).index(1.0) == 29


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


def adamw(**keys: Any) -> AdamW:
    return AdamW(Schedule("constant", warmup_steps=0), lr=0.1, **keys)


def test_fused_where_it_can_be() -> None:
    layer = torch.nn.Linear(2, 2)
    assert adamw().build(layer, 10)["optimizer"].defaults["fused"] is True
    assert adamw(fused=True).build(layer, 10)["optimizer"].defaults["fused"] is True
    assert adamw(fused=False).build(layer, 10)["optimizer"].defaults["fused"] is False
    # scaled gradients would be unscaled inside its kernel, after clipping
    assert adamw().build(layer, 10, scaled=True)["optimizer"].defaults["fused"] is False
    # no kernel for such parameters
    assert adamw().build(torch.nn.Linear(2, 2, device="meta"), 10)["optimizer"].defaults["fused"] is False
    assert not can_fuse([{"params": [torch.zeros(2, dtype=torch.complex64)]}])


def test_fused_under_float16_scaling_is_refused_before_anything_loads() -> None:
    remedy = ("optim.fused=auto", "trainer.precision=bf16-mixed")
    with refused("trainer.precision=16-mixed", key="optim.fused", value="true", remedy=remedy):
        adamw(fused=True).check("16-mixed")
    for fused, precision in [("auto", "16-mixed"), (False, "16-mixed"), (True, "bf16-mixed"), (True, "32-true")]:
        adamw(fused=fused).check(precision)
    RMSprop(Schedule()).check("16-mixed")


@pytest.mark.parametrize(
    "one", [adamw(fused=True, weight_decay=0.1), RMSprop(Schedule("constant", warmup_steps=0), lr=0.1)]
)
def test_kernels_for_many_weights_update_as_one_by_one(one: AdamW | RMSprop) -> None:
    """Against the formulas, over three steps, in float64."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 4).double()
    expected = [p.detach().clone() for p in layer.parameters()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in expected]
    optimizer = one.build(layer, 10)["optimizer"]
    for step in range(1, 4):
        for place, p in enumerate(layer.parameters()):
            p.grad = torch.randn_like(p)
            m, v = moments[place]
            if isinstance(one, AdamW):
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).add_(p.grad**2, alpha=0.001)
                decay = 0.1 if p.ndim >= 2 else 0.0
                update = m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
                expected[place] = expected[place] * (1 - 0.1 * decay) - 0.1 * update
            else:
                v.mul_(0.99).add_(p.grad**2, alpha=0.01)
                expected[place] = expected[place] - 0.1 * p.grad / (v.sqrt() + 1e-8)
        optimizer.step()
    for p, value in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("precision", "fused"), [("bf16-mixed", True), ("16-mixed", "auto"), ("32-true", True)])
def test_clipping_meets_the_limit_in_every_precision(precision: str, fused: bool | str, tmp_path: Path) -> None:
    """The gradient that the update sees has the limit's norm, unscaled, whatever the optimiser's kernel."""
    module = make_module(DPO())
    module.optim = adamw(fused=fused)
    seen: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad.flatten() for p in module.policy.parameters() if p.grad is not None]
        seen.append(torch.cat(grads).norm().item())

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            trainer.optimizers[0].register_step_post_hook(look)

    settings = TrainerSettings(progress_bar=False, max_steps=2, gradient_clip_val=0.25)
    trainer = settings.build(tmp_path, [MetricsFile(tmp_path)], [Look()])
    if precision != "32-true":  # given itself, as Lightning takes bfloat16 for float16 on a CPU
        trainer.strategy.precision_plugin = MixedPrecision(precision, "cpu")
    trainer.fit(module, Pairs(tiny_pairs(8), tiny_pairs(4), 4))
    assert trainer.precision == precision
    assert trainer.optimizers[0].defaults["fused"] is (precision != "16-mixed")
    norms = pd.read_csv(tmp_path / "metrics.csv")["grad_norm"].dropna().tolist()
    assert len(norms) == 2
    assert all(0.25 < norm < 1e3 for norm in norms)  # float16's scale is 65,536
    assert seen == pytest.approx([0.25, 0.25], rel=1e-3)
