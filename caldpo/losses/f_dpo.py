"""f-DPO: ``-log sigmoid(beta (s(a) - s(b)))`` with ``s(x) = f'(exp(x))``.

``a``, ``b``: log-ratios policy/reference of the chosen and rejected response, summed, nats.

| divergence | s(x) |
|---|---|
| reverse_kl | ``x`` (DPO) |
| forward_kl | ``-exp(-x)`` |
| js | ``log sigmoid(x)`` |
| alpha | ``(1 - exp(-alpha x)) / alpha``; alpha 1 is forward KL, alpha to 0 reverse KL |

Constants that cancel in ``s(a) - s(b)`` are left out. Wang et al. 2023, "Beyond Reverse KL: Generalizing
Direct Preference Optimization with Diverse Divergence Constraints", arXiv 2309.16240.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from caldpo.config.bounds import Positive
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.exponents import exponent_limit, power_link
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic
from caldpo.types import LossOutput, PairLogps

Alpha = Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]  # of an f-divergence; published ones are below 1


class FDPO(PreferenceLoss):
    """DPO under another f-divergence."""

    search_space: ClassVar[SearchSpace] = {"beta": Range(3e-3, 1.0, "ours: as dpo")}

    @validated
    def __init__(
        self,
        beta: Positive = 0.1,
        divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js",
        alpha: Alpha | None = None,
    ) -> None:
        super().__init__()
        if (alpha is None) == (divergence == "alpha"):
            raise CaldpoError(
                "belongs to divergence=alpha: needed there and not read elsewhere",
                key="loss.alpha",
                value=alpha,
                remedy="loss.divergence=alpha loss.alpha=0.5, or no alpha",
            )
        self.beta, self.divergence, self.alpha = beta, divergence, alpha

    @property
    def implicit_reward_beta(self) -> float | None:
        """Of reverse KL; under another divergence the reward is ``beta s(x)``, which is no multiple of ``x``."""
        return self.beta if self.divergence == "reverse_kl" else None

    def implicit_rewards(self, logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """``beta s(x)`` of each log-ratio: the reward up to a constant of the prompt and of the divergence."""
        return self.beta * self._s(logps.chosen_log_ratio), self.beta * self._s(logps.rejected_log_ratio)

    @property
    def formula(self) -> str:
        s = {
            "reverse_kl": "x",
            "forward_kl": "-exp(-x)",
            "js": "logsigmoid(x)",
            "alpha": f"(1 - exp(-{self.alpha} x)) / {self.alpha}",
        }[self.divergence]
        return f"-logsigmoid({self.beta:g} (s(a) - s(b))), s(x) = {s}"

    def forward(self, logps: PairLogps) -> LossOutput:
        chosen, rejected = logps.chosen_log_ratio, logps.rejected_log_ratio
        contrast = logistic(self.beta * (self._s(chosen) - self._s(rejected)))
        if self._exponent_scale is None:
            return LossOutput(contrast, {"contrast": contrast})
        lowest = torch.minimum(chosen, rejected)
        clamped = -self._exponent_scale * lowest > exponent_limit(contrast.dtype)
        return LossOutput(contrast, {"contrast": contrast}, {"clamped": clamped.to(contrast.dtype)})

    @property
    def _exponent_scale(self) -> float | None:
        """The alpha of ``exp(-alpha x)``, None where ``s`` has no exponential."""
        return {"forward_kl": 1.0, "alpha": self.alpha}.get(self.divergence)

    def _s(self, x: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        if self._exponent_scale is None:
            return F.logsigmoid(x) if self.divergence == "js" else x
        return power_link(x, self._exponent_scale)  # its constant cancels in s(a) - s(b)
