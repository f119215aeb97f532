"""A loss that takes unpaired rows, with a closed form simple enough to compute by hand."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from caldpo.losses.pointwise import PointwiseLoss
from caldpo.types import PairLogps


class Squares(PointwiseLoss):
    """``(a - 1)^2 + 2 (b + 1)^2`` of the log-ratios."""

    formula = "(a - 1)^2 + 2 (b + 1)^2"

    def chosen_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return (logps.chosen_log_ratio - 1) ** 2

    def rejected_term(self, logps: PairLogps) -> Float[Tensor, " pairs"]:
        return 2 * (logps.rejected_log_ratio + 1) ** 2
