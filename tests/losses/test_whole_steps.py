"""Losses that read all pairs of a step: what they compute of the step, and against TRL's own code on one batch.

TRL 1.16 differs in the pairs: it computes KTO's z, and sorts for AOT, by micro-batch and device rather than by step;
KTO's mismatched responses are the previous row's, and its loss is the mean over responses, half of the sum of a pair's
two terms; ``bco_pair`` has no shift, where TRL's earlier releases had a running mean over each device's micro-batches.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from caldpo.losses.aot import AOT
from caldpo.losses.bco import BCO, SHIFT
from caldpo.losses.kto import KL, KTO
from caldpo.types import PairLogps
from tests.losses.test_losses import PAIRS, gradients, load, to_logps

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL, of the [bench] extra")
BATCHED = [("kto", {}), ("bco", {}), ("aot", {}), ("aot", {"variant": "unpaired"})]


def moved(nats: float) -> PairLogps:
    """Other responses to the same prompts, whose log-ratios are ``nats`` larger than those of ``PAIRS``."""
    return replace(to_logps(PAIRS), policy_chosen=to_logps(PAIRS).policy_chosen + nats)


def mean_log_ratio(logps: PairLogps) -> float:
    return torch.cat([logps.chosen_log_ratio, logps.rejected_log_ratio]).mean().item()


@pytest.mark.parametrize(("name", "keys"), BATCHED)
def test_observing_changes_nothing_and_has_no_gradient(name: str, keys: dict[str, Any]) -> None:
    loss = load(name, **keys)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    observed = loss.observe(to_logps(PAIRS), moved(3.0))
    assert loss.depends_on_batch
    for values in (*observed.per_pair.values(), *observed.state.values()):
        assert not values.requires_grad
    assert all(values.shape == (4,) for values in observed.per_pair.values())
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
    assert observed.state.keys() == before.keys()


@pytest.mark.parametrize("nats", [30.0, -5.0])
def test_kto_compares_with_a_kl_that_is_never_negative(nats: float) -> None:
    loss, mismatched = KTO(beta=0.1), moved(nats)
    kl = loss.observe(to_logps(PAIRS), mismatched).per_pair[KL]
    assert kl[0].item() == pytest.approx(max(0.0, mean_log_ratio(mismatched)), rel=1e-12)
    assert (kl[0] > 0) == (nats > 0)
    step = {KL: kl}
    output = loss(replace(to_logps(PAIRS), of_step=step))
    for got, pair in zip(output.terms["chosen"].tolist(), PAIRS, strict=True):
        assert got == pytest.approx(1 - torch.sigmoid(0.1 * (pair.a - kl[0])).item(), rel=1e-12)
    assert output.diagnostics["kl"].tolist() == kl.tolist()


def test_absent_responses_count_for_nothing() -> None:
    """An absent response's log-probs may be anything."""
    kept = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    mismatched = moved(30.0)
    wild = torch.where(kept > 0, mismatched.policy_chosen, torch.nan)
    unpaired = replace(mismatched, policy_chosen=wild, chosen_present=kept, rejected_present=1 - kept)
    kl = KTO().observe(to_logps(PAIRS), unpaired).per_pair[KL][0].item()
    a, b = mismatched.chosen_log_ratio, mismatched.rejected_log_ratio
    assert kl == pytest.approx((a[0] + a[2] + b[1] + b[3]).item() / 4, rel=1e-12)
    shift = BCO(beta=0.5).observe(unpaired).per_pair[SHIFT][0].item()
    assert shift == pytest.approx(0.5 * (a[0] + a[2] + b[1] + b[3]).item() / 4, rel=1e-12)


def test_bco_weighs_both_kinds_of_responses_alike() -> None:
    """Three chosen responses and one rejected: the mean of the two kinds' means, over all steps so far."""
    kept = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    logps = replace(to_logps(PAIRS), chosen_present=kept, rejected_present=1 - kept)
    loss = BCO(beta=0.5)
    chosen = sum(p.a for p in PAIRS[:3]) / 3
    first = loss.observe(logps)
    assert first.per_pair[SHIFT][0].item() == pytest.approx(0.5 * (chosen + PAIRS[3].b) / 2, rel=1e-12)
    loss.rewards.copy_(first.state["rewards"])
    second = loss.observe(to_logps(PAIRS)).per_pair[SHIFT][0].item()
    all_chosen = (3 * chosen + sum(p.a for p in PAIRS)) / 7
    all_rejected = (PAIRS[3].b + sum(p.b for p in PAIRS)) / 5
    assert second == pytest.approx(0.5 * (all_chosen + all_rejected) / 2, rel=1e-12)
    held_out = loss.observe(to_logps(PAIRS), training=False)
    assert held_out.per_pair[SHIFT][0].item() == pytest.approx(0.5 * (chosen + PAIRS[3].b) / 2, rel=1e-12)
    assert torch.equal(held_out.state["rewards"], loss.rewards)


def test_bco_forgets_a_step_that_is_not_finite() -> None:
    loss, logps = BCO(), to_logps(PAIRS)
    loss.rewards += 2
    broken = replace(logps, policy_chosen=torch.where(torch.arange(4) == 1, torch.nan, logps.policy_chosen))
    observed = loss.observe(broken)
    assert observed.per_pair[SHIFT].isnan().all()
    assert torch.equal(observed.state["rewards"], loss.rewards)


def test_bco_is_a_bound_of_dpo() -> None:
    """Theorem 1 of the paper: the cross-entropy of a pair bounds DPO's loss from above, whatever the shift."""
    logps = to_logps(PAIRS)
    for shift in (-3.0, 0.0, 2.0):
        step = {SHIFT: torch.full((4,), shift, dtype=torch.float64)}
        assert (BCO(beta=0.1)(replace(logps, of_step=step)).loss > load("dpo")(logps).loss).all()


def sorted_sum(loss: AOT, logps: PairLogps) -> Tensor:
    """The loss as the paper has it, over a batch."""
    if loss.variant == "paired":
        upper = logps.policy_chosen - logps.policy_rejected
        lower = logps.reference_chosen - logps.reference_rejected
    else:
        upper, lower = logps.chosen_log_ratio, logps.rejected_log_ratio
    return -torch.log(torch.sigmoid(loss.beta * (upper.sort().values - lower.sort().values))).sum()


@pytest.mark.parametrize("variant", ["paired", "unpaired"])
def test_aot_adds_up_to_the_sorted_sum(variant: Any) -> None:
    loss, logps = AOT(beta=0.2, variant=variant), to_logps(PAIRS)
    wanted = sorted_sum(loss, logps)
    slopes = torch.autograd.grad(wanted, (logps.policy_chosen, logps.policy_rejected))
    assert loss(logps).loss.sum().item() == pytest.approx(wanted.item(), rel=1e-12)
    for got, slope in zip(gradients(loss, logps), slopes, strict=True):
        torch.testing.assert_close(got, slope, rtol=1e-12, atol=1e-15)


@needs_trl
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nats", [30.0, -5.0])
def test_kto_of_trl(nats: float) -> None:
    """Half of ours, with the same mismatched responses."""
    from trl import KTOTrainer

    logps, mismatched = to_logps(PAIRS), moved(nats)
    inputs = (logps.policy_chosen, logps.policy_rejected)
    policy = torch.cat(inputs)
    kl = torch.cat([mismatched.policy_chosen, mismatched.policy_rejected]).detach()
    ones, zeros = torch.ones(8, 2, dtype=torch.long), torch.zeros(8, 1)
    outputs = SimpleNamespace(log_probs=policy[:, None], entropy=zeros, mean_logits=zeros)
    stand_in = SimpleNamespace(
        beta=0.1,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
        _compute_kl_logps=lambda model, batch: kl,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {
        **dict.fromkeys(("input_ids", "attention_mask", "completion_mask"), ones),
        "label": torch.tensor([True] * 4 + [False] * 4),
        "ref_logps": torch.cat([logps.reference_chosen, logps.reference_rejected]),
        "ref_KL_logps": torch.cat([mismatched.reference_chosen, mismatched.reference_rejected]),
    }
    theirs = KTOTrainer._compute_loss(stand_in, lambda **_: outputs, batch, False)
    loss = KTO(beta=0.1, desirable_weight=1.5, undesirable_weight=0.5)
    ours = loss(replace(logps, of_step=loss.observe(logps, mismatched).per_pair)).loss.mean()
    assert theirs.item() == pytest.approx(ours.item() / 2, rel=1e-12)
    slopes = (torch.autograd.grad(value, inputs, retain_graph=True) for value in (ours / 2, theirs))
    for mine, other in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-15)


@needs_trl
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("loss", "loss_type"),
    [(AOT(beta=0.01), "aot"), (AOT(beta=0.3, variant="unpaired"), "aot_unpaired"), (BCO(beta=0.1), "bco_pair")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_batches_of_trl(loss: Any, loss_type: str) -> None:
    parity = pytest.importorskip("tests.losses.test_trl_parity", reason="TRL's formulas run on its stand-in")
    logps = to_logps(PAIRS)
    if loss_type == "bco_pair":
        logps = replace(logps, of_step={SHIFT: torch.zeros(4, dtype=torch.float64)})
    theirs = parity.in_trl(parity.InTRL(loss_type, {"beta": loss.beta}), PAIRS)
    ours = loss(logps).loss.mean()
    slopes = torch.autograd.grad(ours, (logps.policy_chosen, logps.policy_rejected))
    for got, wanted in zip((ours.detach(), *slopes), theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-15)
