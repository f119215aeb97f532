"""A loss over pairs, gradient included, from one pass over the output head: a few pairs at a time.

The gradient of a response's log-prob with respect to the logits is at hand as soon as its pair's loss is known, and a
pair's loss depends on its own two log-probs alone. So each group of pairs goes forward and backward through the head
before the next one starts: three matrix products, nothing computed twice, and no more than one group's logits in
memory. What the loss is remains the caller's: it is differentiated by autograd, group by group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from caldpo.errors import CaldpoError
from caldpo.logprobs.chunked import backward_parts, forward_parts, in_autocast_dtype
from caldpo.logprobs.lm_head_ops import IDENTITY, HeadGradient, HeadProducts, LogitTransform

PairLoss = Callable[[Tensor, Tensor, slice], Tensor]
"""The summed loss (a scalar) of some pairs, from log-probs of their chosen and rejected responses and their places."""


@dataclass(frozen=True, slots=True)
class ResponseTokens:
    """Targets and whose they are, pair by pair.

    Args:
        targets: token ids.
        response: ``i`` for the chosen, ``pairs + i`` for the rejected response of pair ``i``.
        per_pair: how many of the tokens belong to each pair, in order.
    """

    targets: Int[Tensor, " tokens"]
    response: Int[Tensor, " tokens"]
    per_pair: Sequence[int]


def streamed_loss(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    tokens: ResponseTokens,
    loss: PairLoss,
    *,
    transform: LogitTransform = IDENTITY,
    kept_bytes: int = 0,
) -> tuple[Float[Tensor, ""], Float[Tensor, " responses"]]:
    """The loss summed over pairs, differentiable once, and the responses' summed log-probs, nats, detached.

    Args:
        hidden: input of the output head at the positions that predict the targets.
        weight, bias: of the head; under autocast as in :func:`caldpo.logprobs.chunked.token_logprobs`.
        tokens: what is predicted.
        loss: of any group of pairs; it must be the sum of the losses of each pair alone.
        transform: what the model does to the head's output.
        kept_bytes: of a group's softmax between its two passes; what is beyond is computed again.

    Raises:
        CaldpoError: the loss does not depend on the log-probs.
    """
    hidden, weight = in_autocast_dtype(hidden, weight)
    if not torch.is_grad_enabled():  # as in token_logprobs: no gradients for a loss that is only looked at
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        return _StreamedLoss.apply(hidden, weight, bias, tokens, loss, transform, kept_bytes)


def require_dependence(value: Tensor) -> None:
    """Refuse a loss that no gradient can come from.

    Raises:
        CaldpoError: it was computed from nothing that requires one.
    """
    if not value.requires_grad:
        raise CaldpoError(
            "does not depend on the policy's log-probs, so that there is nothing to train",
            key="loss",
            remedy="compute it from the policy_chosen or policy_rejected that it is given, without detaching them",
        )


class _StreamedLoss(torch.autograd.Function):
    """The gradients are computed in the forward pass; the backward pass multiplies them by the loss's own."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: ResponseTokens,
        loss: PairLoss,
        transform: LogitTransform,
        kept_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        head = HeadProducts(weight, bias, transform)
        gradient = HeadGradient(head, hidden, ctx.needs_input_grad[:3])
        count = len(tokens.per_pair)
        logprobs = hidden.new_zeros(2 * count, dtype=head.wide)
        slopes = torch.zeros_like(logprobs)
        total = hidden.new_zeros((), dtype=head.wide)
        for part, pairs in _groups(tokens.per_pair, head.rows_at_once()):
            of, targets = tokens.response[part], tokens.targets[part]
            values, kept = forward_parts(head, hidden[part], targets, kept_bytes=kept_bytes)
            logprobs.index_add_(0, of, values)
            rejected = slice(count + pairs.start, count + pairs.stop)
            with torch.enable_grad():
                both = [logprobs[rows].clone().requires_grad_() for rows in (pairs, rejected)]
                value = loss(both[0], both[1], pairs)
            require_dependence(value)
            total += value.detach()
            slopes[pairs], slopes[rejected] = torch.autograd.grad(value, both, materialize_grads=True)
            backward_parts(head, hidden[part], targets, slopes[of], kept, gradient.within(part))
        ctx.gradient, ctx.hidden_dtype = gradient, hidden.dtype
        ctx.mark_non_differentiable(logprobs)
        return total, logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradient is None:
            raise RuntimeError("the gradient of a streamed loss can be taken once; compute the loss again")
        gradient, ctx.gradient = ctx.gradient, None
        hidden, weight, bias = gradient.scaled(scale).results()
        return None if hidden is None else hidden.to(ctx.hidden_dtype), weight, bias, None, None, None, None


def _groups(per_pair: Sequence[int], tokens_at_once: int) -> Iterator[tuple[slice, slice]]:
    """Consecutive pairs in groups of at most ``tokens_at_once`` tokens, or of one pair: their tokens, their places."""
    first, start, end = 0, 0, 0
    for place, tokens in enumerate(per_pair):
        if place > first and end + tokens - start > tokens_at_once:
            yield slice(start, end), slice(first, place)
            first, start = place, end
        end += tokens
    yield slice(start, end), slice(first, len(per_pair))
