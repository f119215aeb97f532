"""A loss is a function of each pair alone, so that pairs can be computed in any groups: here, one by one.

So is one that reads whole optimiser steps, once what it needs of the step is known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.losses.test_losses import BATCH, PAIRS, ROWS, gradients, load, to_logps

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, row.keys) for name, row in ROWS.items()),
    *((name, {"targets": "scores"}) for name in ("cal_dpo", "cal_ipo", "cal_slic")),
    *((name, {"targets": "scores", "score_center": 0.5}) for name in ("cal_dpo", "cal_ipo", "cal_slic")),
    *(("f_dpo", {"divergence": divergence}) for divergence in ("reverse_kl", "forward_kl", "js")),
]


@pytest.mark.parametrize(("name", "keys"), SETTINGS, ids=[f"{n} {' '.join(map(str, k.values()))}" for n, k in SETTINGS])
@pytest.mark.parametrize("groups", [[[0], [1], [2], [3]], [[3, 1], [2, 0]]], ids=["alone", "in twos, reordered"])
def test_a_batch_is_its_pairs(name: str, keys: dict[str, Any], groups: list[list[int]]) -> None:
    """Losses, terms, diagnostics and gradients."""
    loss, together = load(name, **keys), to_logps(PAIRS)
    step = loss.of_step(together) if loss.depends_on_batch else {}
    whole, slopes = loss(together), gradients(loss, together)
    for group in groups:
        part = replace(to_logps([PAIRS[i] for i in group]), of_step={n: v[group] for n, v in step.items()} or None)
        output = loss(part)
        torch.testing.assert_close(output.loss, whole.loss[group], rtol=1e-14, atol=0)
        for named, of_all in ((output.terms, whole.terms), (output.diagnostics, whole.diagnostics)):
            assert named.keys() == of_all.keys()
            for term, values in named.items():
                torch.testing.assert_close(values, of_all[term][group], rtol=1e-14, atol=0)
        for one, other in zip(gradients(loss, part), slopes, strict=True):
            torch.testing.assert_close(one, other[group], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in BATCH])
def test_no_pair_feels_another(name: str) -> None:
    """The gradient of one pair's loss is 0 at all others, however wild those are."""
    wild = [PAIRS[0], *(type(p)(-1e4, -3.0, -20.0, -9e3, 5, 7, 50.0, -50.0) for p in PAIRS[1:])]
    loss, logps = load(name, **ROWS[name].keys), to_logps(wild)
    inputs = (logps.policy_chosen, logps.policy_rejected)
    first = loss(logps).loss[0]
    torch.testing.assert_close(first, loss(to_logps(PAIRS)).loss[0], rtol=0, atol=0)
    for slope in torch.autograd.grad(first, inputs, allow_unused=True, materialize_grads=True):
        assert not slope[1:].any()
