"""R-DPO: ``-log sigmoid(beta (a - b) + alpha (n_w - n_l))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats; ``n_w``, ``n_l``: their
tokens; ``alpha``: reward that a token costs.

The sign follows from the objective ``E[r - alpha |y|] - beta KL``. Its optimum is ``pi ~ pi_ref exp((r - alpha |y|) /
beta)``, so the reward that a policy implies is ``r = beta log(pi / pi_ref) + alpha |y|``, and Bradley-Terry compares
these. A longer chosen response has then earned part of its preference by length, and is pushed up less. oxRL has
the opposite sign, which rewards length.

Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization", arXiv 2403.19159.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegative, Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic
from caldpo.types import LossOutput, PairLogps


class RDPO(PreferenceLoss):
    """DPO under an objective in which length costs reward."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 1.0, "from Sailor2's grid (arXiv 2502.12982: 0.01 to 0.3); ours up to 1"),
        "length_weight": Range(1e-3, 1.0, "from the 0.001 that Sailor2 chose, over oxRL's 0.01; ours up to 1"),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, length_weight: NonNegative = 0.01) -> None:
        super().__init__()
        self.beta, self.length_weight = beta, length_weight

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """``beta log-ratio + alpha tokens``."""
        chosen = self.beta * logps.chosen_log_ratio + self.length_weight * logps.chosen_tokens
        rejected = self.beta * logps.rejected_log_ratio + self.length_weight * logps.rejected_tokens
        return chosen, rejected

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (a - b) + {self.length_weight:g} (n_w - n_l))"

    def forward(self, logps: PairLogps) -> LossOutput:
        chosen, rejected = self.implicit_rewards(logps)
        contrast = logistic(chosen - rejected)
        return LossOutput(contrast, {"contrast": contrast})
