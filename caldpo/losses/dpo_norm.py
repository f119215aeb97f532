"""Length-normalised DPO: ``-log sigmoid(beta (a / n_w - b / n_l))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats; ``n_w``, ``n_l``: their
tokens.

Lambert et al. 2024, "Tulu 3: Pushing Frontiers in Open Language Model Post-Training", arXiv 2411.15124, section 5.
Beta is per nat of a mean per token, so that it is larger than DPO's by about the length of a response.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap, logistic
from caldpo.types import LossOutput, PairLogps


class DPONorm(PreferenceLoss):
    """Logistic loss on the margin of mean log-ratios per token."""

    length_normalised = True
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.1, 20.0, "over Tulu 3's 5 and Sailor2's 5 to 15; ours from 0.1, for short responses")
    }

    @validated
    def __init__(self, beta: Positive = 5.0) -> None:
        super().__init__()
        self.beta = beta

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Beta times the mean log-ratio per token."""
        chosen = self.beta * logps.chosen_log_ratio / logps.chosen_tokens
        return chosen, self.beta * logps.rejected_log_ratio / logps.rejected_tokens

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} (a/n_w - b/n_l))"

    def forward(self, logps: PairLogps) -> LossOutput:
        contrast = logistic(self.beta * log_ratio_gap(logps, per_token=True))
        return LossOutput(contrast, {"contrast": contrast})
