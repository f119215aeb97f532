"""REBEL: ``(beta (a - b) - eta (r_w - r_l))^2``; the same equation is reward distillation.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats.
``r_w``, ``r_l``: their given rewards, from the data or from a reward model. ``eta`` is ``score_scale``.

Gao et al. 2024, "REBEL: Reinforcement Learning via Regressing Relative Rewards", arXiv 2404.16767, regresses the
policy's change since the last iteration, ``(1/eta') d`` on ``r_w - r_l``: here ``eta' = eta / beta``, and there is one
iteration, since the log-ratio is that to the reference. Fisch et al. 2024, "Robust Preference Optimization through
Reward Model Distillation", arXiv 2405.19316, has ``(beta d - (r_w - r_l))^2`` for the rewards of a reward model.

Swapping the two responses changes nothing, and responses of equal reward still pull ``a`` and ``b`` together. With a
prompt's two responses drawn from the policy itself the gradient is ``4 beta`` times that of RLOO, see
``caldpo/rollouts``.
"""

from __future__ import annotations

from typing import ClassVar

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.scores import pair_scores
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import log_ratio_gap
from caldpo.types import LossOutput, PairLogps


class REBEL(PreferenceLoss):
    """Squared distance of the gap of implicit rewards from the gap of given ones."""

    needs_scores = True
    search_space: ClassVar[SearchSpace] = {
        "beta": Range(
            0.01, 1.0, "ours: as for DPO, whose beta this is; the REBEL repository keeps eta / beta at 1 to 1e6"
        ),
    }

    @validated
    def __init__(self, beta: Positive = 0.1, score_scale: Positive = 1.0) -> None:
        super().__init__()
        self.beta, self.score_scale = beta, score_scale

    @property
    def implicit_reward_beta(self) -> float:
        return self.beta / self.score_scale  # in the unit of the given rewards

    @property
    def formula(self) -> str:
        return f"({self.beta:g} (a - b) - {self.score_scale:g} (score_w - score_l))^2"

    def forward(self, logps: PairLogps) -> LossOutput:
        gap = log_ratio_gap(logps, per_token=False)
        chosen, rejected = pair_scores(logps)
        rewards = chosen.to(gap.dtype) - rejected.to(gap.dtype)
        contrast = (self.beta * gap - self.score_scale * rewards) ** 2
        return LossOutput(contrast, {"contrast": contrast})
