"""The module in a real Trainer: what it optimises, logs and saves."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from caldpo.checkpointing.checkpoint_callback import Checkpoints
from caldpo.checkpointing.checkpoint_io import load_weights
from caldpo.lightning_trainer import TrainerSettings
from caldpo.loggers import MetricsFile
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.cal_dpo import CalDPO
from caldpo.losses.cpo import CPO
from caldpo.losses.dpo import DPO
from caldpo.losses.sft import SFT
from caldpo.models.model_source import prepare_for_training
from caldpo.optim import AdamW, Schedule
from caldpo.reference.frozen_model import FrozenReference
from tests.helpers.messages import refused
from tests.helpers.tiny import batch_of, tiny_model, tiny_pairs
from tests.helpers.tiny_trainer import Pairs, fit, make_module


@pytest.mark.parametrize("loss", [DPO(), SFT(), CPO(), CalDPO()], ids=lambda x: type(x).__name__)
def test_weights_do_not_depend_on_micro_batches(loss: PreferenceLoss, tmp_path: Path) -> None:
    """20 pairs in steps of 8: whole, or as 4 x 2 or 8 x 1 with a last step of 4. Token-mean terms included."""
    weights = []
    for micro, accumulation in [(8, 1), (2, 4), (1, 8)]:
        module = make_module(loss)
        data = Pairs(tiny_pairs(20), tiny_pairs(4), micro)
        fit(module, data, tmp_path / f"{micro}", max_epochs=2, accumulate_grad_batches=accumulation)
        assert module.global_step == 6
        weights.append([p.detach() for p in module.policy.parameters()])
        rows = pd.read_csv(tmp_path / f"{micro}" / "metrics.csv")
        weights[-1].append(torch.tensor(rows["loss"].dropna().to_list()))
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


def test_one_step_is_the_gradient_of_the_mean_loss(tmp_path: Path) -> None:
    """The first SGD-like update equals one computed without Lightning."""
    pairs = tiny_pairs(6)
    module = make_module(DPO(beta=0.5))

    class Sgd:
        def build(self, policy: torch.nn.Module, total_steps: int, *, scaled: bool) -> dict[str, Any]:
            return {"optimizer": torch.optim.SGD(policy.parameters(), lr=0.1)}

    module.optim = Sgd()
    expected = copy.deepcopy(module.policy)
    other = make_module(DPO(beta=0.5))
    logps = other.pair_logps(batch_of(pairs), with_reference=True)
    other.loss(logps).loss.mean().backward()
    with torch.no_grad():
        for target, source in zip(expected.parameters(), other.policy.parameters(), strict=True):
            target -= 0.1 * source.grad
    fit(module, Pairs(pairs, pairs, 3), tmp_path, max_steps=1, accumulate_grad_batches=2)
    for got, want in zip(module.policy.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_reference_is_nowhere_but_in_the_log_ratios(tmp_path: Path) -> None:
    module = make_module(DPO())
    before = copy.deepcopy(module.reference.model.state_dict())
    data = Pairs(tiny_pairs(8), tiny_pairs(4), 4)
    trainer = fit(module, data, tmp_path, max_steps=3, callbacks=[Checkpoints(every=3)])
    policy = {f"policy.{name}" for name in module.policy.state_dict()}
    assert set(module.state_dict()) == policy
    optimised = {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
    assert optimised == {id(p) for p in module.policy.parameters()}
    saved = tmp_path / "checkpoints" / "step-3"
    assert set(load_weights(saved)) == policy
    rest = torch.load(saved / "training.pt", weights_only=True)  # plain data alone: no code can hide in it
    assert "state_dict" not in rest
    for name, value in module.reference.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(p.requires_grad for p in module.reference.model.parameters())
    moved = (torch.equal(before[n], v) for n, v in module.policy.state_dict().items())
    assert not all(moved)


def test_rows_say_what_the_weights_of_their_step_do(tmp_path: Path) -> None:
    """The training row of step t is measured with the weights after t updates, like the evaluation at t."""
    pairs = tiny_pairs(6)
    module = make_module(DPO())
    data = Pairs(pairs, pairs, 6)  # training and held-out pairs are the same, one batch
    trainer = TrainerSettings(progress_bar=False, max_steps=4, val_check_interval=2).build(
        tmp_path, [MetricsFile(tmp_path)], []
    )
    trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    rows = pd.read_csv(tmp_path / "metrics.csv")
    train = rows[rows["loss"].notna()].set_index("step")
    held_out = rows[rows["val/loss"].notna()].set_index("step")
    assert list(train.index) == [0, 1, 2, 3]
    assert list(held_out.index) == [0, 2, 4]
    for step in (0, 2):
        for name in ("loss", "rewards/margins", "log_ratios/chosen", "logps/rejected"):
            assert train.loc[step, name] == pytest.approx(held_out.loc[step, f"val/{name}"], rel=1e-4, abs=1e-5)
    assert train.loc[0, "loss"] == pytest.approx(0.693147, rel=1e-5)
    assert train.loc[0, "rewards/accuracies"] == 0.5
    assert held_out.loc[4, "val/rewards/margins"] > 0
    wanted = {"grad_norm", "clip_fraction", "lr", "tokens_per_second", "terms/contrast", "displacement"}
    assert wanted <= set(rows.columns)
    assert module.latest["val/loss"] == pytest.approx(held_out.loc[4, "val/loss"])


def test_tokens_per_second_counts_response_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("caldpo.step_metrics.time.perf_counter", lambda: float(next(clock)))
    pairs = tiny_pairs(6)
    fit(make_module(DPO()), Pairs(pairs, pairs, 3), tmp_path, max_steps=1, accumulate_grad_batches=2)
    tokens = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    found = pd.read_csv(tmp_path / "metrics.csv")["tokens_per_second"].dropna().tolist()
    assert found == [tokens]  # in one second of this clock


def test_evaluation_is_not_counted_as_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks at each look, every step takes the same time, evaluated after or not."""
    seconds = []
    for val_check_interval in (None, 1):
        clock = iter(range(1000))
        monkeypatch.setattr("caldpo.step_metrics.time.perf_counter", lambda clock=clock: float(next(clock)))
        pairs, folder = tiny_pairs(6), tmp_path / str(val_check_interval)
        fit(make_module(DPO()), Pairs(pairs, pairs, 6), folder, max_steps=4, val_check_interval=val_check_interval)
        rates = pd.read_csv(folder / "metrics.csv")["tokens_per_second"].dropna()
        tokens = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
        seconds.append([round(tokens / rate) for rate in rates])
    assert seconds[1][1:] == [2, 2, 2]  # from pause to resume one tick is taken off, two are left
    assert seconds[0][0] == seconds[1][0] == 1


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_precision_leaves_weights_and_scores_of_pairs_alone(precision: str, tmp_path: Path) -> None:
    """0.3 has no short binary form: rounded to the model's precision it would be another target."""
    module = make_module(CalDPO(beta=0.5, targets="scores"))
    seen: list[torch.Tensor] = []
    inner = module.loss.forward
    module.loss.forward = lambda logps: seen.append(logps.score_chosen) or inner(logps)
    pairs = [dataclasses.replace(p, score_chosen=0.3, score_rejected=-0.3) for p in tiny_pairs(8)]
    trainer = fit(module, Pairs(pairs, pairs, 4), tmp_path, max_steps=2, precision=precision)
    assert all(torch.equal(s, torch.full_like(s, 0.3)) and s.dtype == torch.float32 for s in seen)
    wanted = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}[precision]
    assert module.policy.dtype == wanted
    rows = pd.read_csv(tmp_path / "metrics.csv")
    # at the start: ln 2 + (0.3 / 0.5)^2 + (0.3 / 0.5)^2
    assert rows["loss"].dropna().iloc[0] == pytest.approx(0.693147 + 0.72, rel=0.1)
    assert trainer.global_step == 2


def test_reference_free_losses_train_without_a_reference_and_are_evaluated_with_one(tmp_path: Path) -> None:
    module = make_module(CPO())
    asked: list[list[int]] = []
    real = module.reference.logps
    module.reference.logps = lambda batch: asked.append(batch.index.tolist()) or real(batch)
    data = Pairs(tiny_pairs(8), tiny_pairs(6), 4)
    fit(module, data, tmp_path, max_steps=2)
    assert asked == [[0, 1, 2], [3, 4, 5]]  # the two held-out batches after the epoch, never a training batch
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert "log_ratios/chosen" not in rows.columns
    assert rows["val/log_ratios/chosen"].notna().any()


def test_clipping_limits_the_update(tmp_path: Path) -> None:
    """With plain gradient descent at rate 1, all weights together move by the limit."""
    module = make_module(DPO())

    class Sgd:
        def build(self, policy: torch.nn.Module, total_steps: int, *, scaled: bool) -> dict[str, Any]:
            return {"optimizer": torch.optim.SGD(policy.parameters(), lr=1.0)}

    module.optim = Sgd()
    before = [p.detach().double().clone() for p in module.policy.parameters()]
    fit(module, Pairs(tiny_pairs(4), tiny_pairs(4), 4), tmp_path, max_steps=1, gradient_clip_val=0.01)
    moved = [a.detach().double() - b for a, b in zip(module.policy.parameters(), before, strict=True)]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_clip_fraction_counts_clipped_steps(tmp_path: Path) -> None:
    for limit, expected in [(1e-6, 1.0), (1e6, 0.0)]:
        folder = tmp_path / str(limit)
        fit(
            make_module(DPO()),
            Pairs(tiny_pairs(8), tiny_pairs(4), 4),
            folder,
            max_steps=3,
            gradient_clip_val=limit,
        )
        rows = pd.read_csv(folder / "metrics.csv")
        assert rows["clip_fraction"].dropna().tolist() == [expected] * 3
        assert (rows["grad_norm"].dropna() > 1e-6).all()


def test_another_start_is_refused_before_the_first_step(tmp_path: Path) -> None:
    module = make_module(DPO())
    module.reference = FrozenReference(tiny_model(seed=1))
    trainer = TrainerSettings(progress_bar=False, max_steps=1).build(tmp_path, [MetricsFile(tmp_path)], [])
    with refused("policy", "reference", "differ"):
        trainer.validate(module, Pairs(tiny_pairs(4), tiny_pairs(4), 2), verbose=False)
    module.same_start = False
    trainer.validate(module, Pairs(tiny_pairs(4), tiny_pairs(4), 2), verbose=False)


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    module = make_module(DPO())

    class Broken(DPO):
        def forward(self, logps: Any) -> Any:
            output = super().forward(logps)
            return type(output)(output.loss * float("nan"), output.terms)

    module.loss = Broken()
    before = copy.deepcopy(module.policy.state_dict())
    with refused("loss", "step 0"):
        fit(module, Pairs(tiny_pairs(4), tiny_pairs(4), 2), tmp_path, max_steps=2)
    for name, value in module.policy.state_dict().items():
        assert torch.equal(value, before[name])  # the weights are still good


def test_schedule_warms_up_and_decays(tmp_path: Path) -> None:
    module = make_module(DPO(), lr=1.0)
    module.optim = AdamW(Schedule("linear", warmup_steps=2), lr=0.1)
    fit(module, Pairs(tiny_pairs(8), tiny_pairs(4), 4), tmp_path, max_steps=6)
    lrs = pd.read_csv(tmp_path / "metrics.csv")["lr"].dropna().tolist()
    assert lrs == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0.025])


def test_gradient_checkpointing_changes_no_number(tmp_path: Path) -> None:
    plain, recomputed = make_module(DPO()), make_module(DPO())
    prepare_for_training(recomputed.policy, gradient_checkpointing=True, dropout=False)
    for module in (plain, recomputed):
        fit(module, Pairs(tiny_pairs(8), tiny_pairs(4), 4), tmp_path / str(id(module)), max_steps=3)
    assert recomputed.policy.training  # in evaluation mode checkpointing is silently off
    for a, b in zip(plain.policy.parameters(), recomputed.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_bf16_mixed_follows_float32(tmp_path: Path) -> None:
    ends = []
    for precision in ("32-true", "bf16-mixed"):
        module = make_module(CalDPO(beta=0.5), lr=2e-3)
        data = Pairs(tiny_pairs(16), tiny_pairs(8), 8)
        trainer = fit(module, data, tmp_path / precision, max_steps=20, precision=precision)
        trainer.validate(module, data, verbose=False)
        ends.append(module.latest["val/rewards/margins"])
        assert module.policy.dtype == torch.float32
    assert ends[0] == pytest.approx(ends[1], rel=0.1, abs=0.02)
