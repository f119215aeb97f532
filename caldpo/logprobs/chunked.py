"""Compute log-probs of target tokens from hidden states, a chunk of the tokens at a time.

``log softmax(f(h W^T + b))[y] = z_y - log sum_v exp z_v`` with ``z = f(h W^T + b)``, in nats, where f is the
model's scaling and soft-capping of its logits. The gradient with respect to z is ``g (onehot(y) - softmax(z))``: the
forward pass needs nothing of the vocabulary's size once a chunk is done, and the backward pass can recompute its
logits. Up to ``cache_bytes`` of them are cached instead; those chunks cost three matrix products rather than four.
Neither pass ever holds ``[tokens, vocab]`` beyond that.

Logits, softmax, sums over chunks and the gradient of the head are float32 (float64 for a float64 model), whatever the
dtype of the hidden states.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from caldpo.logprobs.lm_head_ops import IDENTITY, HeadGradient, HeadProducts, LogitTransform, Softmax
from caldpo.types import Alignment


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    targets: Int[Tensor, " tokens"],
    *,
    transform: LogitTransform = IDENTITY,
    cache_bytes: int = 0,
) -> Float[Tensor, " tokens"]:
    """Compute log-probs of ``targets`` under the head's distribution at each hidden state, nats, differentiable.

    Args:
        hidden: input of the output head at the positions that predict the targets.
        weight, bias: of the head. Under autocast, hidden states and weight are multiplied in autocast's dtype.
        targets: token ids.
        transform: what the model does to the head's output.
        cache_bytes: bytes of softmax that are cached for the backward pass; the rest is recomputed.
    """
    hidden, weight = in_autocast_dtype(hidden, weight)
    if not torch.is_grad_enabled():  # autograd functions see what requires a gradient, not whether it is enabled
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = _TokenLogprobs.apply(hidden, weight, bias, targets, transform, cache_bytes)
    return result


@torch.no_grad()
def token_alignments(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    alignment: Alignment,
    *,
    transform: LogitTransform = IDENTITY,
) -> Float[Tensor, " tokens"]:
    """Compute log-probs of the policy's own tokens at each hidden state, nats, as ``alignment`` names them.

    With ``p = exp(z - largest) / total``, ``log max p = -log total``, and ``log sum p^2 = 2 log(norm / total)`` with
    the norm of the exponentials. No gradient.
    """
    hidden, weight = in_autocast_dtype(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        head = HeadProducts(weight, bias, transform)
        found = hidden.new_empty(len(hidden), dtype=head.wide)
        any_token = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        for chunk in head.chunks(len(hidden)):
            _, softmax = head.softmax(hidden[chunk], any_token[chunk], None)
            found[chunk] = -softmax.total.log().squeeze(1)
            if alignment == "sampled":
                found[chunk] = 2 * (found[chunk] + torch.linalg.vector_norm(softmax.exp, dim=1).log())
    return found


def in_autocast_dtype(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both as autocast does for a linear layer."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype)


class _TokenLogprobs(torch.autograd.Function):
    """See :func:`token_logprobs`. A head without gradient costs two products, and nothing is recomputed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        cache_bytes: int,
    ) -> Tensor:
        head = HeadProducts(weight, bias, transform)
        ctx.transform, ctx.cached = transform, []
        if ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3]):
            # the gradient of a log-prob by its own hidden state needs no other token: computed now, while z is at hand
            gradient = HeadGradient(head, hidden, (True, False, False))
            logprobs = forward_chunks(head, hidden, targets, cache_bytes=0, into=gradient)[0]
            ctx.save_for_backward(hidden, weight, bias, targets, gradient.hidden)
            return logprobs
        cache_bytes = cache_bytes if any(ctx.needs_input_grad[:3]) else 0
        logprobs, ctx.cached = forward_chunks(head, hidden, targets, cache_bytes=cache_bytes)
        ctx.save_for_backward(hidden, weight, bias, targets, None)
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, direct = ctx.saved_tensors
        if direct is not None:
            return (direct * gradient[:, None]).to(hidden.dtype), None, None, None, None, None
        head = HeadProducts(weight, bias, ctx.transform)
        total = HeadGradient(head, hidden, ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):  # backward() may be called inside autocast
            backward_chunks(head, hidden, targets, gradient, ctx.cached, total)
        d_hidden, d_weight, d_bias = total.results()
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias, None, None, None


def forward_chunks(
    head: HeadProducts, hidden: Tensor, targets: Tensor, *, cache_bytes: int, into: HeadGradient | None = None
) -> tuple[Tensor, list[Softmax]]:
    """Compute log-probs of all targets, and the softmax of the first chunks, as many as ``cache_bytes`` hold.

    With ``into``, the gradient of the log-probs' sum is added to it.
    """
    logprobs = hidden.new_empty(len(hidden), dtype=head.wide)
    cached: list[Softmax] = []
    buffer: Tensor | None = None
    for chunk in head.chunks(len(hidden)):
        size = head.bytes(len(targets[chunk]))
        fits = size <= cache_bytes
        logprobs[chunk], softmax = head.softmax(hidden[chunk], targets[chunk], None if fits else buffer)
        if fits:
            cached.append(softmax)
            cache_bytes -= size
            continue
        cache_bytes, buffer = 0, softmax.exp  # the cached chunks are the first ones
        if into is not None:
            ones = torch.ones_like(logprobs[chunk])
            into.add(chunk, hidden[chunk], head.logit_gradient(softmax, targets[chunk], ones))
    return logprobs, cached


def backward_chunks(
    head: HeadProducts, hidden: Tensor, targets: Tensor, gradient: Tensor, cached: list[Softmax], total: HeadGradient
) -> None:
    """Backpropagate the log-probs' ``gradient`` into ``total``; cached softmax is consumed."""
    buffer: Tensor | None = None
    for chunk in head.chunks(len(hidden)):
        if cached:
            softmax = cached.pop(0)
        else:
            _, softmax = head.softmax(hidden[chunk], targets[chunk], buffer)
            buffer = softmax.exp
        total.add(chunk, hidden[chunk], head.logit_gradient(softmax, targets[chunk], gradient[chunk]))
