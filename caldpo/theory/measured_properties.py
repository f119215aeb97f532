"""Measure one loss: what the paper's table of properties says by argument, by experiment.

The environment is a table (``caldpo.environments.tabular_environment``) whose rewards have unit variance; labels come
in exact proportions (``labelled_table``). Where beta is 1, each loss whose reward is ``beta x log-ratio`` has the same
optimum ``pi* = pi_ref exp(r)``, to which all are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from caldpo.environments.tabular_environment import Table, TabularEnvironment, kl_divergence, optimum
from caldpo.losses.base import PreferenceLoss
from caldpo.theory.labelled_table import LabelledRows, paired_rows, single_rows
from caldpo.theory.table_fit import Directions, Fit, fit, minimise

ENVIRONMENT = TabularEnvironment(prompts=8, responses=6, seed=0, reference_spread=1.0, reward_spread=1.0)
STEPS = 1500
LONGER = 4  # times as many steps, to see whether a fit goes on
SHIFT = 2.0  # standard deviation of the shift of a prompt's rewards
DIRECTIONS = 4  # of the restricted policies, of 8 x 5 that are free


@dataclass(frozen=True)
class Properties:
    """What was measured of a loss; nats and units of reward. None where a loss cannot be asked.

    Args:
        rejected_gradient: d loss / d log-prob of a rejected response at the start; above 0 it is pushed down.
        rejected_share: its share of both sides' absolute gradient.
        chosen_log_ratio, rejected_log_ratio: means over rows after the fit to labels without noise.
        gap: their difference.
        gap_growth: how much larger it is after LONGER times as many steps; 1: it has stopped.
        slope: of the loss's own implicit reward on the true reward, Bradley-Terry labels; 1 is calibrated.
        kl_to_optimum: KL(pi || pi*), Bradley-Terry labels without sampling noise.
        kl_to_tilt: the same to the nearest of all ``pi_ref exp(r / tau)``.
        tau: of that one.
        seeking: KL(pi || pi*) of a restricted policy, less the least that the family has.
        covering: KL(pi* || pi) likewise. The smaller of the two says which the loss is nearer to.
        shift_pairs: KL between the policies fitted with scores and with shifted scores, same labels.
        shift_single: KL to the optimum that single labels with shifted rewards lead to, less that without the shift.
    """

    rejected_gradient: float
    rejected_share: float
    chosen_log_ratio: float
    rejected_log_ratio: float
    gap: float
    gap_growth: float
    slope: float | None
    kl_to_optimum: float
    kl_to_tilt: float
    tau: float
    seeking: float
    covering: float
    shift_pairs: float
    shift_single: float | None


NAMES = tuple(field.name for field in fields(Properties))


def measure(loss: PreferenceLoss, steps: int = STEPS) -> Properties:
    """Fit the loss five to seven times, and measure.

    The optimum of a loss that reads scores in a range is that of the scores, which then are quantiles.
    """
    reference, rewards = ENVIRONMENT.reference(), ENVIRONMENT.rewards()

    def scored(table: Table) -> Table:
        return table if loss.score_range is None else quantiles(reference, table)

    best = optimum(reference, scored(rewards), 1.0)
    noisy, certain = paired_rows(rewards, 1.0), paired_rows(rewards, None)

    def fitted(rows: LabelledRows, scores: Table = rewards, times: int = 1, basis: Directions | None = None) -> Fit:
        return fit(loss, rows, reference, scored(scores), steps * times, basis)

    plain, short, long = fitted(noisy), fitted(certain), fitted(certain, times=LONGER)
    ends = [
        (f.policy - reference)[certain.prompt, side].mean().item()
        for f in (short, long)
        for side in (certain.chosen, certain.rejected)
    ]
    size = abs(plain.chosen_gradient) + abs(plain.rejected_gradient)
    tau, nearest = nearest_tilt(plain.policy, reference, scored(rewards))
    basis = _directions()
    restricted = fitted(noisy, basis=basis).policy
    least = {way: minimise(_divergence(best, way), reference, steps, basis) for way in ("to", "from")}
    shift = SHIFT * torch.randn(ENVIRONMENT.prompts, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shifted = fitted(noisy, scores=rewards + shift).policy
    single = None
    if loss.takes_unpaired:
        one, other = (fitted(single_rows(r, 1.0), scores=r).policy for r in (rewards, rewards + shift))
        single = kl_divergence(other, best) - kl_divergence(one, best)
    gaps = ends[0] - ends[1], ends[2] - ends[3]
    return Properties(
        rejected_gradient=plain.rejected_gradient,
        rejected_share=abs(plain.rejected_gradient) / size,
        chosen_log_ratio=ends[0],
        rejected_log_ratio=ends[1],
        gap=gaps[0],
        gap_growth=gaps[1] / gaps[0],
        slope=reward_slope(loss, plain.policy, reference, scored(rewards)),
        kl_to_optimum=kl_divergence(plain.policy, best),
        kl_to_tilt=nearest,
        tau=tau,
        seeking=kl_divergence(restricted, best) - kl_divergence(least["to"], best),
        covering=kl_divergence(best, restricted) - kl_divergence(best, least["from"]),
        shift_pairs=kl_divergence(plain.policy, shifted),
        shift_single=single,
    )


def quantiles(reference: Table, rewards: Table) -> Table:
    """Probability under the reference of a response to the same prompt that scores no higher (QRPO's reward)."""
    no_higher = (rewards[:, None, :] <= rewards[:, :, None]).double()  # (prompts, of it, other)
    return (no_higher * reference.exp()[:, None, :]).sum(dim=2)


def nearest_tilt(policy: Table, reference: Table, rewards: Table) -> tuple[float, float]:
    """Find the ``pi_ref exp(r / tau)`` with the least KL(policy || it), nats: tau and that KL.

    Over 1 / tau the KL is convex: ``log Z`` is.
    """

    def divergence(inverse: float) -> float:
        return kl_divergence(policy, (reference + inverse * rewards).log_softmax(dim=1))

    found = minimize_scalar(divergence, bounds=(0.0, 100.0), method="bounded", options={"xatol": 1e-6})
    return (1 / float(found.x) if found.x > 0 else math.inf), float(found.fun)


def reward_slope(loss: PreferenceLoss, policy: Table, reference: Table, rewards: Table) -> float | None:
    """Regress the loss's implicit rewards on the true ones, both less their prompt's mean; None without any."""
    prompts, responses = rewards.shape
    every = torch.cartesian_prod(torch.arange(prompts), torch.arange(responses)).T
    implicit = loss.implicit_rewards(LabelledRows(every[0], every[1], every[1]).logps(policy, reference, rewards))
    if implicit is None:
        return None
    centred = [table - table.mean(dim=1, keepdim=True) for table in (implicit[0].view_as(rewards), rewards)]
    return ((centred[0] * centred[1]).sum() / centred[1].square().sum()).item()


def _divergence(best: Table, way: Literal["to", "from"]) -> Callable[[Table], Tensor]:
    """KL of a policy to or from ``best``, differentiable."""
    return {
        "to": lambda policy: (policy.exp() * (policy - best)).sum(dim=1).mean(),
        "from": lambda policy: (best.exp() * (best - policy)).sum(dim=1).mean(),
    }[way]


def _directions() -> Directions:
    """Random directions that all prompts share: a policy that cannot follow every reward."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(DIRECTIONS, ENVIRONMENT.prompts, ENVIRONMENT.responses, dtype=torch.float64, generator=generator)
