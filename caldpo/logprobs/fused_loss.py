"""Compute a loss over pairs and its gradient in one pass over the output head, a few pairs at a time.

The gradient of a response's log-prob with respect to the logits is known as soon as its pair's loss is, and a pair's
loss depends on its own two log-probs alone. So each group of pairs goes forward and backward through the head before
the next one starts: three matrix products, nothing recomputed, and no more than one group's logits in memory. The loss
is the caller's, and is differentiated by autograd, group by group.
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
from caldpo.logprobs.chunked import backward_chunks, forward_chunks, in_autocast_dtype
from caldpo.logprobs.lm_head_ops import IDENTITY, HeadGradient, HeadProducts, LogitTransform

PairLoss = Callable[[Tensor, Tensor, slice], Tensor]
"""The summed loss (a scalar) of some pairs, from log-probs of their chosen and rejected responses and their indices."""


@dataclass(frozen=True, slots=True)
class ResponseTokens:
    """Target tokens and the responses that they belong to, pair by pair."""

    targets: Int[Tensor, " tokens"]
    response: Int[Tensor, " tokens"]  # i for the chosen, pairs + i for the rejected response of pair i
    per_pair: Sequence[int]  # tokens of each pair, in order
    weights: Float[Tensor, " tokens"] | None = None  # in the sums of log-probs; None: 1

    def weighed(self, values: Tensor, group: slice) -> Tensor:
        """Multiply values of a group of tokens by their weights."""
        return values if self.weights is None else values * self.weights[group]


def fused_pair_loss(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    tokens: ResponseTokens,
    loss: PairLoss,
    *,
    transform: LogitTransform = IDENTITY,
    cache_bytes: int = 0,
) -> tuple[Float[Tensor, ""], Float[Tensor, " responses"]]:
    """Compute the loss summed over pairs, differentiable once, and the responses' summed log-probs, nats, detached.

    Args:
        hidden: input of the output head at the positions that predict the targets.
        weight, bias: of the head; under autocast as in :func:`caldpo.logprobs.chunked.token_logprobs`.
        tokens: targets.
        loss: of any group of pairs; it must be the sum of the losses of each pair alone, and depend on the log-probs.
        transform: what the model does to the head's output.
        cache_bytes: of a group's softmax that are cached between its two passes; the rest is recomputed.
    """
    hidden, weight = in_autocast_dtype(hidden, weight)
    if not torch.is_grad_enabled():  # as in token_logprobs: no gradients for a loss that is only evaluated
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        return _FusedLoss.apply(hidden, weight, bias, tokens, loss, transform, cache_bytes)


def require_dependence(value: Tensor) -> None:
    """Refuse a loss that was computed from nothing that requires a gradient."""
    if not value.requires_grad:
        raise CaldpoError(
            "does not depend on the policy's log-probs, so that there is nothing to train",
            key="loss",
            remedy="compute it from its arguments policy_chosen or policy_rejected, without detaching them",
        )


class _FusedLoss(torch.autograd.Function):
    """Computes gradients in the forward pass; the backward pass multiplies them by the loss's own."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: ResponseTokens,
        loss: PairLoss,
        transform: LogitTransform,
        cache_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        head = HeadProducts(weight, bias, transform)
        gradient = HeadGradient(head, hidden, ctx.needs_input_grad[:3])
        count = len(tokens.per_pair)
        logprobs = hidden.new_zeros(2 * count, dtype=head.wide)
        slopes = torch.zeros_like(logprobs)
        total = hidden.new_zeros((), dtype=head.wide)
        for group, pairs in _groups(tokens.per_pair, head.rows_at_once()):
            response, targets = tokens.response[group], tokens.targets[group]
            values, cached = forward_chunks(head, hidden[group], targets, cache_bytes=cache_bytes)
            logprobs.index_add_(0, response, tokens.weighed(values, group))
            rejected = slice(count + pairs.start, count + pairs.stop)
            with torch.enable_grad():
                both = [logprobs[rows].clone().requires_grad_() for rows in (pairs, rejected)]
                value = loss(both[0], both[1], pairs)
            require_dependence(value)
            total += value.detach()
            slopes[pairs], slopes[rejected] = torch.autograd.grad(value, both, materialize_grads=True)
            slope = tokens.weighed(slopes[response], group)
            backward_chunks(head, hidden[group], targets, slope, cached, gradient.within(group))
        ctx.gradient, ctx.hidden_dtype = gradient, hidden.dtype
        ctx.mark_non_differentiable(logprobs)
        return total, logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradient is None:
            raise RuntimeError("the gradient of a fused loss can be taken once; compute the loss again")
        gradient, ctx.gradient = ctx.gradient, None
        hidden, weight, bias = gradient.scaled(scale).results()
        return None if hidden is None else hidden.to(ctx.hidden_dtype), weight, bias, None, None, None, None


def _groups(per_pair: Sequence[int], tokens_at_once: int) -> Iterator[tuple[slice, slice]]:
    """Group consecutive pairs by at most ``tokens_at_once`` tokens, or one pair: slices of tokens and of pairs."""
    first, start, end = 0, 0, 0
    for index, tokens in enumerate(per_pair):
        if index > first and end + tokens - start > tokens_at_once:
            yield slice(start, end), slice(first, index)
            first, start = index, end
        end += tokens
    yield slice(start, end), slice(first, len(per_pair))
