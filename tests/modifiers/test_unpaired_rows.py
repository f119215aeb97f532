"""Modifiers on rows with one response: what stands in place of the other changes nothing, or such rows are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caldpo.data.collate import collate
from caldpo.errors import CaldpoError
from caldpo.types import PairLogps
from tests.helpers.tiny import tiny_pairs
from tests.helpers.tiny_trainer import Pairs, fit, make_module
from tests.losses.test_losses import PAIRS, load, to_logps
from tests.modifiers.made import LOSSES, MODIFIERS, make, modifier, same
from tests.test_unpaired_training import apart, rows_of

ABLE = [name for name in LOSSES if load(name).takes_unpaired]
PRESENT = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)  # the chosen response; the rejected where it is 0


def rows(absent: float) -> PairLogps:
    """The pairs as unpaired rows, whose absent responses have this log-prob in one token; their reference has -1."""
    logps = to_logps(PAIRS)

    def put(name: str, value: float) -> Tensor:
        there = PRESENT if name.endswith("chosen") or name.startswith("chosen") else 1 - PRESENT
        return torch.where(there > 0, getattr(logps, name), value).detach().requires_grad_(name.startswith("policy"))

    policy = {f"policy_{side}": put(f"policy_{side}", absent) for side in ("chosen", "rejected")}
    reference = {f"reference_{side}": put(f"reference_{side}", -1.0) for side in ("chosen", "rejected")}
    tokens = {f"{side}_tokens": put(f"{side}_tokens", 1.0) for side in ("chosen", "rejected")}
    present = {"chosen_present": PRESENT, "rejected_present": 1 - PRESENT}
    return replace(logps, **policy, **reference, **tokens, **present)


@pytest.mark.parametrize("name", MODIFIERS)
@pytest.mark.parametrize("loss_name", ABLE)
def test_what_takes_unpaired_rows_does_not_read_the_absent_response(loss_name: str, name: str) -> None:
    try:
        loss = make(loss_name, **{name: {}})
    except CaldpoError:
        return
    if not loss.takes_unpaired:
        return  # refused when the data is read
    near, far = rows(-0.5), rows(-40.0)
    found = [loss(logps).loss for logps in (near, far)]
    same(found[0].detach(), found[1].detach())
    for logps, values in zip((near, far), found, strict=True):
        chosen, rejected = torch.autograd.grad(values.sum(), (logps.policy_chosen, logps.policy_rejected))
        assert (chosen[PRESENT == 0] == 0).all()
        assert (rejected[PRESENT == 1] == 0).all()


def test_which_modifiers_take_them() -> None:
    """Those whose formula has a meaning for a single response."""
    taken = {name for name in MODIFIERS if modifier(name).takes_unpaired}
    assert taken == {"dr_dpo", "ld_dpo", "nll", "sampo", "tr_dpo", "wpo"}
    for name in ("focal", "gap_filter", "adaptive_beta"):
        assert not make("apo_zero", **{name: {}}).takes_unpaired, name
    assert not make("dpo", nll={}).takes_unpaired


def test_wpo_weighs_by_the_only_response() -> None:
    weight = make("sppo", wpo={})(rows(-5.0)).diagnostics["wpo_weight"]
    means = [p.pw / p.nw if there else p.pl / p.nl for p, there in zip(PAIRS, PRESENT.tolist(), strict=True)]
    same(weight, torch.tensor(means, dtype=torch.float64).exp())


@pytest.mark.parametrize("name", ["ld_dpo", "sampo"])
def test_a_response_without_a_partner_stays_whole(name: str) -> None:
    batch = collate(apart(tiny_pairs(5)), 0)
    assert batch.response_lengths.max() > 1
    assert (modifier(name).weights(batch, 3) == 1).all()


@pytest.mark.parametrize("name", ["ld_dpo", "sampo"])
def test_training_is_that_without_weights_of_tokens(name: str, tmp_path: Path) -> None:
    single, held_out, logged = apart(tiny_pairs(4)), tiny_pairs(4, seed=1), []
    modifiers: dict[str, dict[str, Any]] = {name: {}}
    for folder, loss in (("bare", load("sppo")), ("modified", make("sppo", **modifiers))):
        fit(make_module(loss), Pairs(single, held_out, micro=4), tmp_path / folder, max_steps=2)
        logged.append(
            [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows_of(tmp_path / folder)]
        )
    assert logged[0] == logged[1]
