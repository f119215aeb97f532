"""Losses of whole optimiser steps: exact however a step is divided, against values computed pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from caldpo.checkpointing.checkpoint_callback import Checkpoints
from caldpo.checkpointing.checkpoint_io import load_weights, policy_weights
from caldpo.data.batching import StepPlan
from caldpo.data.pair import TokenizedPair
from caldpo.lightning_module import PreferenceModule
from caldpo.losses.aot import AOT
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.bco import BCO
from caldpo.losses.dpo import DPO
from caldpo.losses.kto import KTO
from tests.helpers import train_ranks
from tests.helpers.forked import ROOT, run_ranks
from tests.helpers.messages import refused
from tests.helpers.tiny import tiny_pairs
from tests.helpers.tiny_trainer import Pairs, fit, make_module, shift_from_reference
from tests.test_unpaired_training import apart

READ = {"reads_ahead": True, "mismatched": True}
DOUBLE = {"precision": "64-true"}


def log_ratio(module: PreferenceModule, prompt: list[int], response: list[int]) -> Tensor:
    """By the models' full logits, one sequence at a time."""
    values = []
    for model in (module.policy, module.reference.model):
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        values.append(logits.log_softmax(-1)[range(len(response)), response].sum())
    return values[0] - values[1].detach()


def kto(a: Tensor, b: Tensor, mismatched: Tensor) -> Tensor:
    z = mismatched.mean().clamp_min(0).detach()
    assert z > 0.1, "a case that tests nothing"
    return 1 - torch.sigmoid(0.3 * (a - z)) + 0.8 * (1 - torch.sigmoid(0.3 * (z - b)))


def bco(a: Tensor, b: Tensor, mismatched: Tensor) -> Tensor:
    delta = (0.3 * torch.cat([a, b])).mean().detach()
    return -torch.log(torch.sigmoid(0.3 * a - delta)) - torch.log(torch.sigmoid(delta - 0.3 * b))


def aot_unpaired(a: Tensor, b: Tensor, mismatched: Tensor) -> Tensor:
    return -torch.log(torch.sigmoid(0.3 * (a.sort().values - b.sort().values)))


Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
FORMULAS: dict[str, Formula] = {"kto": kto, "bco": bco, "aot_unpaired": aot_unpaired}


class Gradients(pl.Callback):
    """Keeps the gradient of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.steps.append({name: p.grad.clone() for name, p in module.policy.named_parameters()})


def of_step(module: PreferenceModule, pairs: list[TokenizedPair], formula: Formula) -> tuple[Tensor, dict[str, Tensor]]:
    """The step's loss and its gradient, ``pairs`` in the step's order."""
    count = len(pairs)
    a, b = (
        torch.stack([log_ratio(module, p.prompt_ids, getattr(p, ids)) for p in pairs])
        for ids in ("chosen_ids", "rejected_ids")
    )
    others = [(p, pairs[(place + 1) % count]) for place, p in enumerate(pairs)]
    mismatched = torch.stack(
        [log_ratio(module, p.prompt_ids, ids) for p, other in others for ids in (other.chosen_ids, other.rejected_ids)]
    )
    loss = formula(a, b, mismatched).mean()
    named = dict(module.policy.named_parameters())
    return loss.detach(), dict(zip(named, torch.autograd.grad(loss, [*named.values()]), strict=True))


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(("micro", "accumulation"), [(6, 1), (2, 3), (4, 2)])
def test_loss_and_gradient_of_a_step(name: str, micro: int, accumulation: int, tmp_path: Path) -> None:
    """The streamed head over micro-batches gives what the full logits of one sequence at a time give."""
    pairs, module = tiny_pairs(6, seed=1), make_module(train_ranks.LOSSES[name]())
    shift_from_reference(module)
    order = StepPlan(6, micro, accumulation=accumulation, seed=0).order(0)
    wanted, gradient = of_step(module, [pairs[row] for row in order], FORMULAS[name])
    kept = Gradients()
    data = Pairs(pairs, pairs, micro, **READ)
    fit(module, data, tmp_path, max_steps=1, accumulate_grad_batches=accumulation, callbacks=[kept], **DOUBLE)
    row = pd.read_csv(tmp_path / "metrics.csv").dropna(subset="loss").iloc[0]
    assert row["loss"] == pytest.approx(wanted.item(), rel=1e-12)
    for parameter, value in gradient.items():
        torch.testing.assert_close(kept.steps[0][parameter], value, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", ["kto", "bco"])
@pytest.mark.parametrize(("micro", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_a_step_of_unpaired_rows(name: str, micro: int, accumulation: int, tmp_path: Path) -> None:
    """More desirable than undesirable responses: each counts by itself, its absent partner nowhere."""
    rows = [row for i, row in enumerate(apart(tiny_pairs(6, seed=5))) if i not in (1, 3, 5, 7)]
    rows = [replace(row, index=i) for i, row in enumerate(rows)]
    module = make_module(train_ranks.LOSSES[name]())
    shift_from_reference(module)
    ordered = [rows[row] for row in StepPlan(8, micro, accumulation=accumulation, seed=0).order(0)]
    responses = [row.chosen_ids if row.label else row.rejected_ids for row in ordered]
    ratios = torch.stack([log_ratio(module, row.prompt_ids, ids) for row, ids in zip(ordered, responses, strict=True)])
    good = torch.tensor([row.label for row in ordered])
    if name == "kto":
        others = zip(ordered, [*responses[1:], responses[0]], strict=True)
        z = torch.stack([log_ratio(module, row.prompt_ids, ids) for row, ids in others]).mean().clamp_min(0).detach()
        assert z > 0.1, "a case that tests nothing"
        losses = torch.where(good, torch.sigmoid(0.3 * (z - ratios)), 0.8 * torch.sigmoid(0.3 * (ratios - z)))
    else:
        delta = 0.3 * (ratios[good].mean() + ratios[~good].mean()).detach() / 2
        losses = -F.logsigmoid(torch.where(good, 1, -1) * (0.3 * ratios - delta))
    named = dict(module.policy.named_parameters())
    gradient = dict(zip(named, torch.autograd.grad(losses.mean(), [*named.values()]), strict=True))
    kept, data = Gradients(), Pairs(rows, rows, micro, **READ)
    fit(module, data, tmp_path, max_steps=1, accumulate_grad_batches=accumulation, callbacks=[kept], **DOUBLE)
    row = pd.read_csv(tmp_path / "metrics.csv").dropna(subset="loss").iloc[0]
    assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-12)
    for parameter, value in gradient.items():
        torch.testing.assert_close(kept.steps[0][parameter], value, rtol=1e-8, atol=1e-11)


def trained(folder: Path, loss: str, *division: Any) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Two epochs of 21 pairs in steps of 8, in this process."""
    folder.mkdir()
    train_ranks.main(folder, *division, loss=loss)
    return torch.load(folder / "weights.pt", weights_only=True), pd.read_csv(folder / "metrics.csv")


def same(one: tuple[dict[str, Tensor], pd.DataFrame], two: tuple[dict[str, Tensor], pd.DataFrame]) -> None:
    """Adam divides by the size of a gradient, which makes rounding errors of small ones larger."""
    for name, value in one[0].items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-5, atol=1e-5)
    for name in ("loss", "grad_norm", "val/loss", "val/rewards/margins"):
        first, second = (table.set_index("step")[name].dropna() for table in (one[1], two[1]))
        assert list(first.index) == list(second.index)
        assert first.tolist() == pytest.approx(second.tolist(), rel=1e-6), name


@pytest.mark.parametrize("loss", train_ranks.LOSSES)
def test_the_division_of_a_step_changes_nothing(loss: str, tmp_path: Path) -> None:
    """Micro-batches by count, in other orders by length, within token budgets, and with empty ones."""
    whole = trained(tmp_path / "whole", loss, 8, 1, 1)
    for number, division in enumerate(
        [(2, 4, 1), (3, 3, 1, "packed"), (8, 1, 1, "packed", 40), (8, 1, 1, "padded", 60)]
    ):
        if division != (3, 3, 1, "packed"):  # steps of 9 pairs are others
            same(whole, trained(tmp_path / str(number), loss, *division))


@pytest.mark.slow
@pytest.mark.parametrize("loss", train_ranks.LOSSES)
def test_two_ranks_equal_one(loss: str, tmp_path: Path) -> None:
    """The last step of an epoch has 5 pairs: ranks and micro-batches have unlike numbers, and one is filler."""
    whole = trained(tmp_path / "whole", loss, 8, 1, 1)
    for budget in ([], ["packed", "20"]):
        folder = tmp_path / f"two{len(budget)}"
        folder.mkdir()
        done = run_ranks(2, "tests.helpers.train_ranks", str(folder), "1", "4", "2", *budget, loss, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        same(whole, (torch.load(folder / "weights.pt", weights_only=True), pd.read_csv(folder / "metrics.csv")))


def test_bco_remembers_the_rewards_of_the_run(tmp_path: Path) -> None:
    """Training pairs alone: twice 21 pairs in two epochs, whatever was evaluated in between."""
    weights, table = trained(tmp_path / "run", "bco", 2, 4, 1)
    remembered = weights["loss.rewards"]
    assert remembered.dtype == torch.float64
    assert remembered[:, 1].tolist() == [42, 42]
    shift = table.set_index("step")["diagnostics/shift"].dropna()
    assert (remembered[:, 0] / 42).mean().item() == pytest.approx(shift.iloc[-1], rel=1e-9)
    held_out = table.set_index("step")["val/diagnostics/shift"].dropna()
    for step in (2, 4):  # as the step before left it
        assert held_out[step] == pytest.approx(shift[step - 1], rel=1e-9)


@pytest.mark.parametrize("loss", [KTO(), AOT(), BCO()])
def test_data_that_brings_no_whole_steps_are_refused(loss: PreferenceLoss, tmp_path: Path) -> None:
    module = make_module(loss)
    with refused(key="loss", remedy="caldpo.fit"):
        fit(module, Pairs(tiny_pairs(4), tiny_pairs(4), 2), tmp_path, max_steps=1)


def test_other_losses_read_nothing_ahead(tmp_path: Path) -> None:
    module = make_module(DPO())
    calls = []
    module.policy.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    fit(module, Pairs(tiny_pairs(4), tiny_pairs(4), 2), tmp_path, max_steps=1, accumulate_grad_batches=2)
    assert calls[1:] == [True, True, False, False]  # after a look at the head: micro-batches, and the evaluation


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_weights_get_their_gradient_in_half_precision(precision: str, tmp_path: Path) -> None:
    """Autocast keeps copies of weights, and those of a pass without gradient have none."""
    kept, module = Gradients(), make_module(BCO())
    data = Pairs(tiny_pairs(4), tiny_pairs(4), 2, **READ)
    if precision == "bf16-true":
        module.reference.model.bfloat16()
    fit(module, data, tmp_path, max_steps=1, accumulate_grad_batches=2, precision=precision, callbacks=[kept])
    assert all(bool(gradient.any()) for gradient in kept.steps[0].values())
    assert module.loss.rewards.dtype == torch.float64
    assert module.loss.rewards[0, 1] == 4


def test_checkpoints_hold_what_the_loss_remembers(tmp_path: Path) -> None:
    module = make_module(BCO())
    data = Pairs(tiny_pairs(8), tiny_pairs(4), 4, **READ)
    fit(module, data, tmp_path, max_steps=3, callbacks=[Checkpoints(every=3)])
    folder = tmp_path / "checkpoints" / "step-3"
    assert torch.equal(load_weights(folder)["loss.rewards"], module.loss.rewards)
    assert not module.loss.rewards[:, 0].eq(0).any()
    assert policy_weights(folder).keys() == module.policy.state_dict().keys()
    own = make_module(BCO())
    own.load_state_dict(load_weights(folder))
    assert torch.equal(own.to(torch.bfloat16).loss.rewards, module.loss.rewards)


def test_filler_is_not_read_ahead_where_nobody_waits_for_it(tmp_path: Path) -> None:
    """4 pairs in steps of 3, of one a micro-batch: the second step has two micro-batches of filler."""
    module = make_module(BCO())
    fit(
        module, Pairs(tiny_pairs(4), tiny_pairs(4), 1, **READ), tmp_path / "head", max_steps=1
    )  # which looks at the head
    module.same_start = False
    calls = []
    module.policy.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    data = Pairs(tiny_pairs(4), tiny_pairs(4), 1, reads_ahead=True)
    fit(module, data, tmp_path / "run", max_steps=2, accumulate_grad_batches=3)
    assert calls == [False] * 3 + [True] * 3 + [False, True] + [False] * 2  # two steps, and the evaluation
