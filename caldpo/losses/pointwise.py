"""Losses that are a sum over single responses: one term for a chosen, one for a rejected response.

A row may then have one response alone, with a label: the term of the absent one is 0.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from caldpo.losses.base import PreferenceLoss
from caldpo.losses.terms import where_present
from caldpo.types import LossOutput, PairLogps


class PointwiseLoss(PreferenceLoss):
    """The sum of a chosen and a rejected response's own terms."""

    takes_unpaired = True
    pairwise = False

    @abstractmethod
    def chosen_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        """Compute the chosen responses' share of the loss."""

    @abstractmethod
    def rejected_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        """Compute the rejected responses' share of the loss."""

    def forward(self, logps: PairLogps) -> LossOutput:
        terms = {
            "chosen": where_present(logps.chosen_present, self.chosen_term(logps)),
            "rejected": where_present(logps.rejected_present, self.rejected_term(logps)),
        }
        return LossOutput(terms["chosen"] + terms["rejected"], terms)


def sum_and_count(values: Float[Tensor, " pairs"], present: Float[Tensor, " pairs"] | None) -> Float[Tensor, " 2"]:
    """Add up the values of the rows that have the response, and count these rows; float64, without gradient."""
    wide = values.detach().double()
    there = torch.ones_like(wide) if present is None else present.to(wide)
    return torch.stack([torch.where(there > 0, wide, 0).sum(), there.sum()])
