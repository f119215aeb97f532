"""QRPO: ``(q_w - beta log Z - beta a)^2 + (q_l - beta log Z - beta b)^2`` with ``Z = beta (exp(1 / beta) - 1)``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. ``q_w``, ``q_l``: the
scores of the data, which have to be quantiles: the share of the reference's own responses to the prompt whose reward is
not higher. Under the reference they are uniform on [0, 1], so that the partition function ``Z`` of the optimal policy
``reference exp(q / beta) / Z`` is known, and each response has its own target ``q / beta - log Z``, pair or not.

Matrenok et al. 2025, "Quantile Reward Policy Optimization: Alignment with Pointwise Regression and Exact Partition
Functions", arXiv 2507.08068, Eq. 11, identity transform. The authors' code (github.com/CLAIRE-Labo/
quantile-reward-policy-optimization) takes half the sum, and ``log Z = log beta + 1 / beta``, which is 5e-5 too high at
beta 0.1 and less below, but 0.46 at beta 1; here it is exact.
"""

from __future__ import annotations

import math
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.pointwise import PointwiseLoss
from caldpo.losses.scores import pair_scores
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.types import PairLogps


class QRPO(PointwiseLoss):
    """Regression of each implicit reward on the quantile of the response's reward, less the log-partition function."""

    needs_scores = True
    score_range = (0.0, 1.0)
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.003, 1.0, "the authors' grids: 3e-4 to 3e-2 at 7-8B; ours: higher, for log-ratios of few nats")
    }

    @validated
    def __init__(self, beta: Positive = 0.1) -> None:
        super().__init__()
        self.beta = beta

    @property
    def beta_log_z(self) -> float:
        """``beta log Z``, of the beta that there is now."""
        return _beta_log_z(self.beta)

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """``beta x + beta log Z``: what the optimal policy has as the quantile itself, not only up to a constant."""
        return (
            self.beta * logps.chosen_log_ratio + self.beta_log_z,
            self.beta * logps.rejected_log_ratio + self.beta_log_z,
        )

    @property
    def formula(self) -> str:
        beta, constant = f"{self.beta:g}", f"{self.beta_log_z:g}"
        return f"(q_w - {constant} - {beta} a)^2 + (q_l - {constant} - {beta} b)^2"

    def chosen_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        predicted = self.beta * logps.chosen_log_ratio
        return (pair_scores(logps)[0].to(predicted.dtype) - self.beta_log_z - predicted) ** 2

    def rejected_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        predicted = self.beta * logps.rejected_log_ratio
        return (pair_scores(logps)[1].to(predicted.dtype) - self.beta_log_z - predicted) ** 2


def _beta_log_z(beta: float) -> float:
    """``beta log(beta (exp(1 / beta) - 1))``: from 1 at a vanishing beta to 1/2 at an infinite one."""
    if beta < 0.01:  # exp(-1 / beta) is far below a rounding error
        return 1 + beta * math.log(beta)
    half = 1 / (2 * beta)  # Z = exp(half) sinh(half) / half, which neither overflows nor cancels at a large beta
    return 0.5 + beta * math.log(math.sinh(half) / half) if half else 0.5
