"""Where the reference's log-probs come from: one interface, whatever keeps them."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from caldpo.types import PairBatch


class Reference(Protocol):
    """Log-probs of the frozen reference for a batch of pairs."""

    model: PreTrainedModel  # the reference itself, for generations

    def logps(
        self, batch: PairBatch, key: int | None = None
    ) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Summed log-probs (nats) of the chosen and rejected responses, without gradient.

        ``key`` names a batch of a fixed set, whose answer may be remembered.
        """
        ...
