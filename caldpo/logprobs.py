"""The log-prob engine: a causal language model and token ids in, log-probs per response out.

``log pi(y|x) = sum_t log softmax(logits[t-1])[y_t]`` over the response's tokens, EOS included, in nats.
Logits are taken at the positions that predict a response token of any row and the softmax at those of the
row alone; log-probs accumulate in float32 (float64 for a float64 model).
"""

from __future__ import annotations

import inspect

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
    predicted = response_mask[:, 1:]  # [rows, length - 1]; column t is predicted by the logits at t
    columns = predicted.any(dim=0).nonzero().squeeze(-1)
    logits = _logits_at(model, input_ids, attention_mask, columns)  # [rows, columns, vocab]
    here = predicted[:, columns]
    targets = input_ids[:, 1:][:, columns][here]
    wanted = logits[here]  # [response tokens, vocab]: the softmax never sees prompt or padding
    token_logprobs = -F.cross_entropy(
        wanted if wanted.dtype == torch.float64 else wanted.float(), targets, reduction="none"
    )
    row = here.nonzero()[:, 0]
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
    columns: Int[Tensor, " columns"],
) -> Float[Tensor, "rows columns vocab"]:
    """Logits at the given positions; the output head runs on those alone where the model can do that."""
    arguments = {"input_ids": input_ids, "attention_mask": attention_mask.long(), "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**arguments, logits_to_keep=columns).logits
    return model(**arguments).logits[:, columns]
