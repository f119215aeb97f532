"""Fit a table of logits, or a restricted family of tables, with a loss: full batches, float64, to convergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.environments.tabular_environment import Table
from caldpo.losses.base import PreferenceLoss
from caldpo.theory.labelled_table import LabelledRows

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
    chosen, rejected = _start_gradients(loss, rows, reference, scores)
    policy = minimise(lambda table: _mean_loss(loss, rows, table, reference, scores), reference, steps, basis)
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


def _mean_loss(loss: PreferenceLoss, rows: LabelledRows, policy: Table, reference: Table, scores: Table) -> Tensor:
    return loss(rows.logps(policy, reference, scores)).loss.mean()


def _start_gradients(loss: PreferenceLoss, rows: LabelledRows, reference: Table, scores: Table) -> tuple[float, float]:
    logps = rows.logps(reference, reference, scores)
    inputs = logps.policy_chosen.detach().requires_grad_(), logps.policy_rejected.detach().requires_grad_()
    values = {name: getattr(logps, name) for name in logps.__slots__} | dict(
        zip(("policy_chosen", "policy_rejected"), inputs, strict=True)
    )
    total = loss(type(logps)(**values)).loss.sum()
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    means = [0.0 if gradient is None else gradient.mean().item() for gradient in found]
    return means[0], means[1]
