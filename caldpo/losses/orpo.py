"""ORPO: ``-m_w - weight log sigmoid(lo(m_w) - lo(m_l))`` with ``lo(m) = m - log(1 - exp(m))``.

``m_w = p_w / n_w``, ``m_l = p_l / n_l``: policy log-probs of the chosen and rejected response, mean per token, nats;
no reference. ``lo``: the log-odds of a response whose probability is taken as the geometric mean of its tokens'.
``-m_w`` is the negative log-likelihood of the chosen response. The weight is the paper's lambda.

Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", arXiv 2403.07691, Eqs. 6 and 7.
TRL's experimental ORPO trainer has the same odds term; its likelihood term is a mean over the tokens of a batch.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.config.bounds import NonNegative
from caldpo.config.signatures import validated
from caldpo.losses.base import PreferenceLoss
from caldpo.losses.exponents import exponent_limit
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.losses.terms import logistic, token_means
from caldpo.types import LossOutput, PairLogps


class ORPO(PreferenceLoss):
    """Likelihood of the chosen response, and the odds of the chosen against the rejected one."""

    needs_reference = False
    length_normalised = True
    search_space: ClassVar[SearchSpace] = {
        "odds_weight": Range(0.01, 10.0, "over the authors' commands, 0.05 and 0.1; ours wider, as cpo's")
    }

    @validated
    def __init__(self, odds_weight: NonNegative = 0.1) -> None:
        super().__init__()
        self.odds_weight = odds_weight

    @property
    def formula(self) -> str:
        return f"-p_w/n_w + {self.odds_weight:g} [-logsigmoid(lo(p_w/n_w) - lo(p_l/n_l))], lo(m) = m - log(1 - exp(m))"

    def forward(self, logps: PairLogps) -> LossOutput:
        chosen, rejected = token_means(logps)
        contrast = self.odds_weight * logistic(log_odds(chosen) - log_odds(rejected))
        return LossOutput(contrast - chosen, {"contrast": contrast, "nll": -chosen})


def log_odds(m: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """``m - log(1 - exp(m))`` of log-probs, exact to the last digits also where the probability is almost 1.

    At probability 1 the odds are infinite. A log-prob counts as at least ``exp(-exponent_limit)`` below 0 (5e-20 nats
    in float32), far below a rounding error of the probability, so that value and gradient are finite.
    """
    below = m.clamp(max=-math.exp(-exponent_limit(m.dtype)))
    return m - torch.log(-torch.expm1(below))
