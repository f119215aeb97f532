"""What a loss is a function of, found by evaluating it on two made-up pairs in float64.

So no loss has to declare whether it can be modified in a certain way, and none can declare it wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from caldpo.losses.base import PreferenceLoss
from caldpo.types import PairLogps


def probe() -> PairLogps:
    """Two mild pairs, with scores: no hinge is flat on them, and their responses differ in length."""
    chosen, rejected = _two(-2.3, -4.1), _two(-3.2, -3.4)
    reference = _two(-2.9, -4.0), _two(-3.0, -3.6)
    tokens, scores = (_two(3.0, 5.0), _two(4.0, 2.0)), (_two(0.8, 0.6), _two(0.1, 0.3))
    logps = PairLogps(chosen, rejected, *reference, *tokens, *scores)
    return replace(logps, chosen_alignment=_two(-2.0, -3.0), rejected_alignment=_two(-2.5, -3.0))


def _two(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@contextmanager
def beta_times(loss: PreferenceLoss, factor: Tensor | float) -> Iterator[None]:
    """Multiply the attribute ``beta`` of a loss while the context lasts."""
    holder: Any = loss
    before = holder.beta
    holder.beta = before * factor
    try:
        yield
    finally:
        holder.beta = before


@torch.no_grad()
def beta_multiplies_log_ratios(loss: PreferenceLoss) -> bool:
    """Whether the attribute ``beta`` does nothing but multiply both log-ratios."""
    if not isinstance(getattr(loss, "beta", None), float) or not loss.needs_reference or loss.depends_on_batch:
        return False
    logps = probe()
    with beta_times(loss, 2.0):
        by_beta = loss(logps).loss
    # twice the log-ratios by another reference: the policy's own log-probs, which a term may read as well, stay
    by_ratios = loss(
        replace(
            logps,
            reference_chosen=logps.policy_chosen - 2 * logps.chosen_log_ratio,
            reference_rejected=logps.policy_rejected - 2 * logps.rejected_log_ratio,
        )
    ).loss
    changes = not torch.allclose(by_beta, loss(logps).loss, rtol=1e-9, atol=0)
    return changes and torch.allclose(by_beta, by_ratios, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def reads_only_the_gap(loss: PreferenceLoss) -> bool:
    """Whether the reference enters only by the difference of the two log-ratios."""
    if not loss.needs_reference or loss.depends_on_batch:
        return False
    logps = probe()
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    one = replace(logps, reference_chosen=logps.reference_chosen - 0.2)
    both = replace(one, reference_rejected=logps.reference_rejected - 0.2)
    plain = loss(logps).loss
    same = torch.allclose(loss(both).loss, plain, rtol=1e-9, atol=1e-12)
    return same and not torch.allclose(loss(one).loss, plain, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def terms_of(loss: PreferenceLoss) -> set[str]:
    """Names of the terms that add up to the loss."""
    return set(loss(probe()).terms)


@torch.no_grad()
def has_implicit_rewards(loss: PreferenceLoss) -> bool:
    """Whether the loss's own derivation has rewards of single responses."""
    return loss.implicit_rewards(probe()) is not None
