"""beta-DPO: the beta of an optimiser step is ``(1 + alpha (M - M0)) beta``, without gradient.

``M``: mean of the gap ``a - b`` over the pairs of the step (those that ``gap_filter`` keeps, where it is there), nats;
``M0``: its running mean, see ``gap_average.py``; beta is that of the loss, and its scaled value at least 0.001. A step
of pairs that the policy tells apart by more than usual has a larger beta, and so stays closer to the reference.

Held-out pairs have the loss's own beta, so that their loss means the same at every step.

Wu et al. 2024, "beta-DPO: Direct Preference Optimization with Dynamic beta", arXiv 2407.08639, Eq. 7 and 9. Units of
the gap (nats, without beta), momentum, smallest beta and alpha 0.6 are those of the authors' repository
(junkangwu/beta-DPO).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegative, Rate
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.modifiers.gap_average import KEPT, GapAverage, gaps_of
from caldpo.modifiers.loss_probes import beta_multiplies_log_ratios
from caldpo.modifiers.modifier_base import BetaScale, Losses
from caldpo.types import PairLogps, StepStatistics

SMALLEST_BETA = 1e-3
FACTOR = "beta_factor"  # name of the statistic


class AdaptiveBeta(BetaScale):
    """Scales beta by how far the step's gap is from the usual one."""

    name = "adaptive_beta"

    @validated
    def __init__(self, alpha: NonNegative = 0.6, momentum: Rate = 0.9) -> None:
        super().__init__()
        self.alpha = alpha
        self.average = GapAverage(momentum)
        self._beta = 1.0

    def check(self, loss: PreferenceLoss) -> None:
        super().check(loss)
        if not beta_multiplies_log_ratios(loss):
            raise self.refusal(loss, "has no beta that does nothing but multiply the log-ratios")
        self._beta = float(loss.beta)  # type: ignore[arg-type]

    @property
    def note(self) -> str:
        return f"beta times 1 + {self.alpha:g} (M - M0), M: mean of a - b over the step, M0: its running mean"

    def observe(self, step: PairLogps, losses: Losses, *, training: bool) -> StepStatistics:
        gaps = gaps_of(step)
        if not training:
            return StepStatistics({FACTOR: torch.ones_like(gaps)})
        state = self.average.after(gaps)
        kept = None if step.of_step is None else step.of_step.get(KEPT)
        mean = gaps.mean() if kept is None else (gaps * kept).sum() / kept.sum()
        factor = (1 + self.alpha * (mean.double() - state["mean"])).clamp(min=SMALLEST_BETA / self._beta)
        per_pair = torch.where(factor.isfinite(), factor, 1).to(gaps.dtype).expand(len(gaps))
        return StepStatistics({FACTOR: per_pair}, {f"average.{name}": value for name, value in state.items()})

    def factors(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        assert logps.of_step is not None, "the modified loss computes it first"
        return logps.of_step[FACTOR]
