"""IPO: ``(a / n_w - b / n_l - 1 / (2 beta))^2``, or with sums ``(a - b - 1 / (2 beta))^2``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats.
``n_w``, ``n_l``: response lengths in tokens.

Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
arXiv 2310.12036, Eq. 17, is written with sums. Its authors have since said that the log-ratios are meant
as means per token, which is what other trainers compute; that is the default here.
"""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap
from caldpo.types import LossOutput, PairLogps


class IPO(PreferenceLoss):
    """Squared distance of the log-ratio gap from ``1 / (2 beta)``."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(0.01, 5.0, "from Hugging Face's best at 7B (0.01, means); ours up to gaps of 0.1 nats per token")
    }

    @validated
    def __init__(self, beta: Positive = 0.1, length_normalize: bool = True) -> None:
        super().__init__()
        self.beta, self.length_normalize = beta, length_normalize
        self.length_normalised = length_normalize

    @property
    def implicit_reward_beta(self) -> float | None:
        """With sums, reward per nat; the reward of a mean per token is no multiple of the summed log-ratio."""
        return None if self.length_normalize else self.beta

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """``beta log-ratio``, or its mean per token: the probability to win, up to a constant of the prompt."""
        chosen, rejected = self.beta * logps.chosen_log_ratio, self.beta * logps.rejected_log_ratio
        if self.length_normalize:
            return chosen / logps.chosen_tokens, rejected / logps.rejected_tokens
        return chosen, rejected

    @property
    def formula(self) -> str:
        gap = "a/n_w - b/n_l" if self.length_normalize else "a - b"
        return f"({gap} - {1 / (2 * self.beta):g})^2"

    def forward(self, logps: PairLogps) -> LossOutput:
        gap = log_ratio_gap(logps, per_token=self.length_normalize)
        contrast = (gap - 1 / (2 * self.beta)) ** 2
        return LossOutput(contrast, {"contrast": contrast})
