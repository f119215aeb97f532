"""The pairs' ground-truth scores, for the losses that need them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from caldpo.errors import CaldpoError
from caldpo.types import PairLogps


def pair_scores(logps: PairLogps) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Return the scores of chosen and rejected, as precise as the data's.

    Raises:
        CaldpoError: there are none. A run is refused earlier, when its data are read.
    """
    if logps.score_chosen is None or logps.score_rejected is None:
        raise CaldpoError(
            "reads the pairs' scores, and there are none",
            key="loss",
            remedy="take data with score_chosen and score_rejected, or a loss that needs no scores",
        )
    return logps.score_chosen, logps.score_rejected
