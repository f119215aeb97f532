"""beta-DPO's filter: of each optimiser step, a share of the pairs is left out, outliers of the gap ``a - b`` rather.

``floor((1 - share) n)`` of the step's ``n`` pairs are drawn without replacement, with probabilities proportional to
``exp(-((a - b - M0) / S0)^2 / 2)``; ``M0``, ``S0``: running mean and standard deviation of the gap, nats, see
``gap_average.py``. The loss is the mean over the pairs that are kept. At least one is. The draw depends on ``seed`` and
the number of the step alone. Held-out pairs are all kept.

Wu et al. 2024, "beta-DPO: Direct Preference Optimization with Dynamic beta", arXiv 2407.08639, Sec. 4.3; share 0.2 and
all else as in the authors' repository (junkangwu/beta-DPO). There each rank divides by the pairs that it keeps
itself; here the mean is over those of the whole step.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegativeInt, Rate
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.modifiers.gap_average import KEPT, GapAverage, gaps_of
from caldpo.modifiers.modifier_base import Losses, PairWeight
from caldpo.types import PairLogps, StepStatistics


class GapFilter(PairWeight):
    """Leaves pairs with an unusual gap out of the step."""

    name = "gap_filter"
    needs_reference = True
    depends_on_batch = True
    chooses_pairs = True
    steps: Tensor

    @validated
    def __init__(self, share: Rate = 0.2, momentum: Rate = 0.9, seed: NonNegativeInt = 0) -> None:
        super().__init__()
        self.share, self.seed = share, seed
        self.average = GapAverage(momentum)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def formula(self, inner: str) -> str:
        return f"kept ({inner})"

    @property
    def note(self) -> str:
        return f"kept: {1 - self.share:g} of a step's pairs, drawn by their a - b"

    def observe(self, step: PairLogps, losses: Losses, *, training: bool) -> StepStatistics:
        gaps = gaps_of(step)
        if not training:
            return StepStatistics({KEPT: torch.ones_like(gaps)})
        state = self.average.after(gaps)
        distance = torch.where(state["deviation"] > 0, (gaps.double() - state["mean"]) / state["deviation"], 0)
        # rounded first: 10 (1 - 0.8) is 1.9999999999999996
        count = max(1, int(round(len(gaps) * (1 - self.share), 9)))
        # the largest of log-probability + Gumbel noise are a draw without replacement
        drawn = np.random.default_rng((self.seed, int(self.steps))).gumbel(size=len(gaps))
        keys = -0.5 * distance.nan_to_num(torch.inf, torch.inf, torch.inf) ** 2 + torch.from_numpy(drawn).to(distance)
        kept = torch.zeros_like(gaps).scatter(0, keys.topk(count).indices, len(gaps) / count)
        averages = {f"average.{name}": value for name, value in state.items()}
        return StepStatistics({KEPT: kept}, {**averages, "steps": self.steps + 1})

    def weights(self, logps: PairLogps, loss: PreferenceLoss) -> Float[Tensor, " pairs"]:
        assert logps.of_step is not None, "the modified loss computes it first"
        return logps.of_step[KEPT]
