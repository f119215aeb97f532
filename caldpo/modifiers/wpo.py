"""WPO: each pair weighs ``w_w w_l``, ``w = exp(1/n sum_t [log pi(y_t) - log o_t])``, without gradient, at most 1.

``w`` of a response is the policy's mean log-prob per token, as a probability, relative to ``o_t``: with
``alignment=none`` 1; ``greedy`` the probability of the policy's likeliest token at that place; ``sampled`` the mean
probability of a token drawn there, ``sum_v p_v^2``. Pairs that the policy would itself produce weigh more, which makes
off-policy pairs resemble on-policy ones; with alignment the policy's own responses weigh 1, whatever their entropy.

Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", arXiv 2406.11827, Eq. 3 to 5. The
authors' repository (wzhouad/WPO, scripts/run_wpo.py) has sampled alignment, as has TRL 1.16 (``use_weighting``), and
clamps the product at 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.terms import where_present
from caldpo.modifiers.modifier_base import Losses, PairWeight
from caldpo.types import PairLogps, StepStatistics

WEIGHT = "wpo_weight"  # name of the statistic
SYMBOLS = {"none": "", "greedy": ", relative to the likeliest tokens", "sampled": ", relative to drawn tokens"}


class WPO(PairWeight):
    """Weighs pairs by how likely the policy is to produce them."""

    name = "wpo"
    takes_unpaired = True

    @validated
    def __init__(self, alignment: Literal["none", "greedy", "sampled"] = "none") -> None:
        super().__init__()
        self.alignment = None if alignment == "none" else alignment
        # the distribution over the vocabulary is looked at once, before the step, rather than in its pass with gradient
        self.depends_on_batch = self.alignment is not None
        self.symbols = SYMBOLS[alignment]

    def formula(self, inner: str) -> str:
        return f"sg[exp(p_w/n_w + p_l/n_l){self.symbols}] ({inner})"

    def observe(self, step: PairLogps, losses: Losses, *, training: bool) -> StepStatistics:
        if step.chosen_alignment is None or step.rejected_alignment is None:
            raise ValueError("the weights need log-probs of the policy's own tokens, and there are none")
        chosen, rejected = step.chosen_alignment, step.rejected_alignment
        return StepStatistics({WEIGHT: _weight(step, step.policy_chosen - chosen, step.policy_rejected - rejected)})

    def weights(self, logps: PairLogps, loss: PreferenceLoss) -> Float[Tensor, " pairs"]:
        if not self.depends_on_batch:
            return _weight(logps, logps.policy_chosen, logps.policy_rejected)
        assert logps.of_step is not None, "the modified loss computes it first"
        return logps.of_step[WEIGHT]


@torch.no_grad()
def _weight(logps: PairLogps, chosen: Tensor, rejected: Tensor) -> Tensor:
    """``exp`` of the sums' means per token, at most 1; a response that a row does not have counts 1."""
    of_chosen = where_present(logps.chosen_present, chosen / logps.chosen_tokens)
    of_rejected = where_present(logps.rejected_present, rejected / logps.rejected_tokens)
    return (of_chosen + of_rejected).exp().clamp(max=1)
