"""Fit a table of logits, or a restricted family of tables, with a loss: full batches, float64, to convergence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.environments.tabular_environment import Table
from caldpo.losses.base import PreferenceLoss
from caldpo.theory.labelled_table import LabelledRows
from caldpo.types import PairLogps

Directions = Float[Tensor, "directions prompts responses"]
LR = 0.02  # of Adam, decayed to 0 by a cosine; a logit moves by about this much a step


@dataclass(frozen=True)
class Fit:
    """A fitted policy and the gradient it began with.

    Args:
        policy: log-probs.
        chosen_gradient, rejected_gradient: mean derivative of the loss by the policy's log-prob of a row's chosen and
            rejected response, at policy = reference.
    """

    policy: Table
    chosen_gradient: float
    rejected_gradient: float


def fit(
    loss: PreferenceLoss,
    rows: LabelledRows,
    reference: Table,
    scores: Table,
    steps: int,
    basis: Directions | None = None,
) -> Fit:
    """Minimise the loss's mean over the rows, from policy = reference.

    Args:
        scores: what the loss reads as the responses' scores.
        basis: directions that the logits may move in; None moves each by itself.
    """
    loss = copy.deepcopy(loss)  # which may remember the steps of a fit
    chosen, rejected = _start_gradients(loss, rows, reference, scores)
    policy = minimise(lambda table: _step_loss(loss, rows, table, reference, scores), reference, steps, basis)
    return Fit(policy, chosen, rejected)


def minimise(
    objective: Callable[[Table], Float[Tensor, ""]], start: Table, steps: int, basis: Directions | None = None
) -> Table:
    """Minimise a function of a policy's log-probs, by Adam over its logits; ``basis`` as for :func:`fit`."""
    free = torch.zeros(start.shape if basis is None else len(basis), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def policy() -> Table:
        moved = free if basis is None else torch.tensordot(free, basis, dims=1)
        return (start + moved).log_softmax(dim=1)

    for _ in range(steps):
        optimizer.zero_grad()
        objective(policy()).backward()
        optimizer.step()
        schedule.step()
    return policy().detach()


def _step_loss(
    loss: PreferenceLoss, rows: LabelledRows, policy: Table, reference: Table, scores: Table
) -> Float[Tensor, ""]:
    """Mean loss of all rows as one optimiser step, which a loss that reads whole steps remembers."""
    return loss(_of_step(loss, rows, rows.logps(policy, reference, scores), policy, reference, scores)).loss.mean()


def _of_step(
    loss: PreferenceLoss, rows: LabelledRows, logps: PairLogps, policy: Table, reference: Table, scores: Table
) -> PairLogps:
    if not loss.depends_on_batch:
        return logps
    with torch.no_grad():
        mismatched = rows.mismatched().logps(policy, reference, scores) if loss.needs_mismatched else None
        statistics = loss.observe(logps, mismatched)
        for name, value in statistics.state.items():
            loss.get_buffer(name).copy_(value)
    return replace(logps, of_step=statistics.per_pair)


def _start_gradients(loss: PreferenceLoss, rows: LabelledRows, reference: Table, scores: Table) -> tuple[float, float]:
    logps = rows.logps(reference, reference, scores)
    inputs = logps.policy_chosen.detach().requires_grad_(), logps.policy_rejected.detach().requires_grad_()
    logps = replace(logps, policy_chosen=inputs[0], policy_rejected=inputs[1])
    total = loss(_of_step(loss, rows, logps, reference, reference, scores)).loss.sum()
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    means = [0.0 if gradient is None else gradient.mean().item() for gradient in found]
    return means[0], means[1]
