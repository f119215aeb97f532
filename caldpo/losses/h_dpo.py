"""H-DPO: ``-log sigmoid(alpha beta (p_w - p_l) - beta (r_w - r_l))``.

``p_w``, ``p_l`` and ``r_w``, ``r_l``: log-probs of the chosen and rejected response under the policy and the reference,
summed, nats. The objective ``E[r] + alpha beta H(policy) - beta H(policy, reference)``, with entropy and cross-entropy,
has KL at alpha 1, which is DPO. Its optimum is ``reference^(1/alpha) exp(r / (alpha beta))`` up to a constant, whose
reward is ``alpha beta p - beta r``: alpha below 1 sharpens the policy, above 1 flattens it.

Omura et al. 2024, "Entropy Controllable Direct Preference Optimization", arXiv 2411.07595.
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


class HDPO(PreferenceLoss):
    """DPO whose policy has another entropy."""

    search_space: ClassVar[SearchSpace] = {
        "beta": Range(3e-3, 1.0, "ours: as dpo"),
        "alpha": Range(0.7, 1.3, "ours: around DPO (1), oxRL's default, to either side", log=False),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, alpha: Positive = 0.9) -> None:
        super().__init__()
        self.beta, self.alpha = beta, alpha

    @property
    def implicit_reward_beta(self) -> float | None:
        """Of alpha 1; else the reward ``beta (alpha p - r)`` is no multiple of the log-ratio."""
        return self.beta if self.alpha == 1 else None

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """``beta (alpha p - r)``, up to a constant of the prompt."""
        more = self.alpha - 1
        return (
            self.beta * (logps.chosen_log_ratio + more * logps.policy_chosen),
            self.beta * (logps.rejected_log_ratio + more * logps.policy_rejected),
        )

    @property
    def formula(self) -> str:
        return f"-logsigmoid({self.beta:g} ({self.alpha:g} (p_w - p_l) - (r_w - r_l)))"

    def forward(self, logps: PairLogps) -> LossOutput:
        entropy = (self.alpha - 1) * (logps.policy_chosen - logps.policy_rejected)
        contrast = logistic(self.beta * (log_ratio_gap(logps, per_token=False) + entropy))
        return LossOutput(contrast, {"contrast": contrast})
