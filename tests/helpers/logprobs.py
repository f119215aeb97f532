"""Log-probs by the engine, of a batch of pairs or of any tokens."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from caldpo.logprobs import LogprobEngine
from caldpo.types import PairBatch


def pair_logprobs(model: nn.Module, batch: PairBatch) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Compute summed log-probs of the chosen and of the rejected responses of one batch, nats."""
    return LogprobEngine(model)(batch)


def response_logprobs(
    model: nn.Module,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    response_mask: Bool[Tensor, "rows length"],
) -> Float[Tensor, " rows"]:
    """Compute summed log-probs of the tokens of each row in ``response_mask``, nats.

    Rows are padded on either side. The first token of a row is not predicted, and never in the mask.
    """
    rows, columns = response_mask.nonzero(as_tuple=True)
    return LogprobEngine(model).responses(
        rows * input_ids.shape[1] + columns - 1,
        input_ids[rows, columns],
        rows,
        len(input_ids),
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        position_ids=(attention_mask.long().cumsum(1) - 1).clamp_min(0),
    )
