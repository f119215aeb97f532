"""SPPO-hard: ``(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats. SPPO regresses
``log(pi / pi_t)`` on ``(P(y beats pi_t) - 1/2) / beta``; "hard" takes the probability of the chosen as 1 and of the
rejected as 0. It is Cal-DPO's calibration term without the contrast: the ablation of Cal-DPO.

Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", arXiv 2405.00675, Eq. 4.7 with
hard probabilities; one iteration of it, on given pairs.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.pointwise import PointwiseLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.types import PairLogps


class SPPO(PointwiseLoss):
    """Squared distance of each log-ratio from that of a certain win or loss."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(1e-3, 1.0, "from the authors' 0.001; ours up to 1, targets of 0.5 nats, for small models")
    }

    @validated
    def __init__(self, beta: Positive = 0.1) -> None:
        super().__init__()
        self.beta = beta

    @property
    def implicit_reward_beta(self) -> float:
        """Of the win probability less 1/2, which is the reward here."""
        return self.beta

    @property
    def formula(self) -> str:
        t = f"{1 / (2 * self.beta):g}"
        return f"(a - {t})^2 + (b + {t})^2"

    def chosen_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return (logps.chosen_log_ratio - 1 / (2 * self.beta)) ** 2

    def rejected_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return (logps.rejected_log_ratio + 1 / (2 * self.beta)) ** 2
