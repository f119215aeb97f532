"""The log-prob engine: a causal language model and token ids in, log-probs per response out.

``log pi(y|x) = sum_t log softmax(logits[t-1])[y_t]`` over the response's tokens, EOS included, in nats.
The output head runs at the positions that predict a response token and nowhere else, so that no logits of
prompt or padding exist; log-probs accumulate in float32 (float64 for a float64 model).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from caldpo.types import PairBatch


def response_logprobs(
    model: nn.Module,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    response_mask: Bool[Tensor, "rows length"],
) -> Float[Tensor, " rows"]:
    """Summed log-probs of each row's response tokens, nats.

    Args:
        model: a causal language model of transformers' interface (``forward(...).logits``).
        input_ids: right-padded tokens.
        attention_mask: True on tokens, False on padding.
        response_mask: True on the tokens whose log-probs are summed. Never at position 0, which nothing
            predicts.
    """
    predicts = response_mask.roll(-1, dims=1)  # position t - 1 predicts token t; nothing predicts position 0
    logits = _logits_at(model, input_ids, attention_mask, predicts)  # [response tokens, vocab]
    token_logprobs = -F.cross_entropy(
        logits if logits.dtype == torch.float64 else logits.float(), input_ids[response_mask], reduction="none"
    )
    row = response_mask.nonzero()[:, 0]
    return token_logprobs.new_zeros(len(input_ids)).index_add(0, row, token_logprobs)


def pair_logprobs(model: nn.Module, batch: PairBatch) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Summed log-probs of the chosen and of the rejected responses, from one forward pass over both."""
    both = response_logprobs(model, batch.input_ids, batch.attention_mask, batch.response_mask)
    return both[: batch.pairs], both[batch.pairs :]


def response_tokens(batch: PairBatch) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Lengths of the chosen and of the rejected responses, tokens."""
    counts = batch.response_mask.sum(dim=1).float()
    return counts[: batch.pairs], counts[batch.pairs :]


def _logits_at(
    model: nn.Module,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    at: Bool[Tensor, "rows length"],
) -> Float[Tensor, "positions vocab"]:
    """Logits at the marked positions, row by row.

    The hidden states are picked on their way into the model's own output head, so that whatever the model does
    to its logits afterwards (scaling, soft-capping) is done to these. A model without such a head gives all its
    logits, and they are picked afterwards.
    """

    def pick(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0][at], *inputs[1:])

    heads: Any = getattr(model, "get_output_embeddings", None)
    head = None if heads is None else heads()
    hook = None if head is None else head.register_forward_pre_hook(pick)
    try:
        logits = model(input_ids=input_ids, attention_mask=attention_mask.long(), use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits if logits.ndim == 2 else logits[at]
