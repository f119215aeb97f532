"""Dr. DPO: an optimiser step minimises ``-beta' log mean exp(-loss / beta')`` over its pairs.

Pairs with a large loss, which may have the wrong label, count less: the gradient is that of the pairs' losses weighed
by ``softmax(-loss / beta')``. For ``beta'`` towards infinity it is the plain mean. The mean is over all pairs of the
step, whatever its micro-batches and ranks; for held-out pairs over all of them.

Wu et al. 2024, "Towards Robust Alignment of Language Models: Distributionally Robustifying Direct Preference
Optimization", arXiv 2407.07880, Eq. 12; ``beta'`` 1 as in the authors' repository (junkangwu/Dr_DPO).
"""

from __future__ import annotations

import torch

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.modifiers.modifier_base import Losses, StepObjective
from caldpo.types import LossOutput, PairLogps, StepStatistics

WEIGHT, OBJECTIVE = "dr_dpo_weight", "dr_dpo_objective"  # names of the statistics


class DrDPO(StepObjective):
    """Takes the soft minimum of the losses of a step."""

    name = "dr_dpo"
    takes_unpaired = True

    @validated
    def __init__(self, beta_prime: Positive = 1.0) -> None:
        super().__init__()
        self.beta_prime = beta_prime

    def formula(self, inner: str) -> str:
        b = f"{self.beta_prime:g}"
        return f"-{b} log mean exp(-({inner}) / {b})"

    def observe(self, step: PairLogps, losses: Losses, *, training: bool) -> StepStatistics:
        values = losses(step).double()
        least = values.min()
        exponents = (least - values) / self.beta_prime
        # expm1 and log1p: at a large beta' the exponentials are 1 up to their last digits
        objective = least - self.beta_prime * torch.log1p(torch.expm1(exponents).mean())
        weight = torch.softmax(exponents, 0) * len(values)
        dtype = step.policy_chosen.dtype
        return StepStatistics({WEIGHT: weight.to(dtype), OBJECTIVE: objective.to(dtype).expand(len(values))})

    def objective(self, output: LossOutput, logps: PairLogps) -> LossOutput:
        assert logps.of_step is not None, "the modified loss computes it first"
        weight, objective = logps.of_step[WEIGHT], logps.of_step[OBJECTIVE]
        loss = objective + weight * (output.loss - output.loss.detach())  # the objective, with the weighed gradient
        terms = {name: weight * value for name, value in output.terms.items()}
        rest = loss.detach() - weight * output.loss.detach()
        return LossOutput(loss, terms | {self.name: rest}, output.diagnostics | {WEIGHT: weight})
