"""Log-probs of given tokens from hidden states, a part of the tokens at a time.

``log softmax(f(h W^T + b))[y] = z_y - log sum_v exp z_v`` with ``z = f(h W^T + b)``, in nats, where f is the
model's scaling and soft-capping of its logits. The gradient with respect to z is ``g (onehot(y) - softmax(z))``: the
forward pass needs nothing of the vocabulary's size once a part is done, and the backward pass can compute the part's
logits again. Up to ``kept_bytes`` of them are kept instead; those parts cost three matrix products rather than four.
Neither pass ever holds ``[tokens, vocab]`` beyond that.

Logits, softmax, sums over parts and the gradient of the head are float32 (float64 for a float64 model), whatever the
dtype of the hidden states.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from caldpo.logprobs.lm_head_ops import IDENTITY, HeadGradient, HeadProducts, LogitTransform, Softmax


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    targets: Int[Tensor, " tokens"],
    *,
    transform: LogitTransform = IDENTITY,
    kept_bytes: int = 0,
) -> Float[Tensor, " tokens"]:
    """Log-probs of ``targets`` under the head's distribution at each hidden state, nats, differentiable.

    Args:
        hidden: input of the output head at the positions that predict the targets.
        weight: of the head. Under autocast, hidden states and weight are multiplied in autocast's dtype.
        bias: of the head.
        targets: token ids.
        transform: what the model does to the head's output.
        kept_bytes: so many bytes of softmax are kept for the backward pass; the rest is computed again.
    """
    hidden, weight = in_autocast_dtype(hidden, weight)
    if not torch.is_grad_enabled():  # autograd functions are told what requires a gradient, not whether one is wanted
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = _TokenLogprobs.apply(hidden, weight, bias, targets, transform, kept_bytes)
    return result


def in_autocast_dtype(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both as autocast would hand them to a linear layer."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype)


class _TokenLogprobs(torch.autograd.Function):
    """See :func:`token_logprobs`. A head without gradient costs two products, and nothing is computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        kept_bytes: int,
    ) -> Tensor:
        head = HeadProducts(weight, bias, transform)
        ctx.transform, ctx.kept = transform, []
        if ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[1:3]):
            # the gradient of each log-prob by its own hidden state needs no other token: now, while z is at hand
            gradient = HeadGradient(head, hidden, (True, False, False))
            logprobs = forward_parts(head, hidden, targets, kept_bytes=0, into=gradient)[0]
            ctx.save_for_backward(hidden, weight, bias, targets, gradient.hidden)
            return logprobs
        keep = kept_bytes if any(ctx.needs_input_grad[:3]) else 0
        logprobs, ctx.kept = forward_parts(head, hidden, targets, kept_bytes=keep)
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
        with torch.autocast(hidden.device.type, enabled=False):  # some call backward() where the forward was called
            backward_parts(head, hidden, targets, gradient, ctx.kept, total)
        d_hidden, d_weight, d_bias = total.results()
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias, None, None, None


def forward_parts(
    head: HeadProducts, hidden: Tensor, targets: Tensor, *, kept_bytes: int, into: HeadGradient | None = None
) -> tuple[Tensor, list[Softmax]]:
    """Log-probs of all targets, and the softmax of the first parts, as many as ``kept_bytes`` hold.

    With ``into``, the gradient of the log-probs' sum is added to it on the way.
    """
    logprobs = hidden.new_empty(len(hidden), dtype=head.wide)
    kept: list[Softmax] = []
    buffer: Tensor | None = None
    for part in head.parts(len(hidden)):
        size = head.bytes(len(targets[part]))
        keep = size <= kept_bytes
        logprobs[part], softmax = head.softmax(hidden[part], targets[part], None if keep else buffer)
        if keep:
            kept.append(softmax)
            kept_bytes -= size
            continue
        kept_bytes, buffer = 0, softmax.exp  # the kept parts are the first ones
        if into is not None:
            into.add(part, hidden[part], head.logit_gradient(softmax, targets[part], torch.ones_like(logprobs[part])))
    return logprobs, kept


def backward_parts(
    head: HeadProducts, hidden: Tensor, targets: Tensor, gradient: Tensor, kept: list[Softmax], total: HeadGradient
) -> None:
    """Add to ``total`` what the log-probs' ``gradient`` amounts to; what was kept is used up."""
    buffer: Tensor | None = None
    for part in head.parts(len(hidden)):
        if kept:
            softmax = kept.pop(0)
        else:
            _, softmax = head.softmax(hidden[part], targets[part], buffer)
            buffer = softmax.exp
        total.add(part, hidden[part], head.logit_gradient(softmax, targets[part], gradient[part]))
