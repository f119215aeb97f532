"""Matrix products and elementwise operations between hidden states and log-probs, over one chunk of the tokens."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 256 * 2**20}
"""Bytes of logits computed at once: enough rows for efficient products, few enough for caches.

On a CPU below the 32 MiB from which the C library maps and zeroes each block again.
"""

WIDE_RESULTS = {"cpu": False, "cuda": True}
"""Whether half-precision matrices are multiplied into a float32 result; else they are converted first."""


@contextlib.contextmanager
def cpu_as(device: str) -> Iterator[None]:
    """Split and widen products on the CPU as on ``device``, for estimates of its memory."""
    before = CHUNK_BYTES["cpu"], WIDE_RESULTS["cpu"]
    CHUNK_BYTES["cpu"], WIDE_RESULTS["cpu"] = CHUNK_BYTES[device], WIDE_RESULTS[device]
    try:
        yield
    finally:
        CHUNK_BYTES["cpu"], WIDE_RESULTS["cpu"] = before


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """Transform of logits after the output head: ``cap tanh(scale z / cap)``, without cap ``scale z``."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Transform the logits in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits


IDENTITY = LogitTransform()


@dataclass(slots=True)
class Softmax:
    """The softmax of a chunk's logits z, as ``exp(z - largest) / total``."""

    exp: Tensor  # [rows, vocab]
    largest: Tensor  # [rows, 1]
    total: Tensor  # [rows, 1]
    picked: Tensor  # [rows, 1], the targets' logits


class HeadProducts:
    """Products with a head's weight, ``[vocab, hidden]``, and bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> None:
        self.wide = torch.promote_types(weight.dtype, torch.float32)
        self.dtype = weight.dtype
        self.mixed = WIDE_RESULTS.get(weight.device.type, False) and weight.dtype != self.wide
        self.weight = weight if self.mixed else weight.to(self.wide)
        self.bias = None if bias is None else bias.to(self.wide)
        self.bias_dtype = None if bias is None else bias.dtype
        self.transform = transform

    def bytes(self, rows: int) -> int:
        """Bytes of the logits of some tokens."""
        return rows * len(self.weight) * self.wide.itemsize

    def rows_at_once(self) -> int:
        """Largest number of tokens of a chunk."""
        return max(1, CHUNK_BYTES.get(self.weight.device.type, CHUNK_BYTES["cpu"]) // self.bytes(1))

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Divide tokens into as few chunks as possible, whose sizes differ by at most one."""
        count = -(-tokens // self.rows_at_once())
        return (slice(tokens * i // count, tokens * (i + 1) // count) for i in range(count))

    def softmax(self, hidden: Tensor, targets: Tensor, buffer: Tensor | None) -> tuple[Tensor, Softmax]:
        """Compute log-probs of the targets, nats, and the softmax, in the buffer's memory if that is large enough."""
        fits = buffer is not None and len(buffer) >= len(hidden)
        z = self.product(hidden, self.weight.T, buffer[: len(hidden)] if fits and buffer is not None else None)
        if self.bias is not None:
            z += self.bias
        self.transform(z)
        picked = z.gather(1, targets[:, None])
        largest = z.amax(dim=1, keepdim=True)
        total = z.sub_(largest).exp_().sum(dim=1, keepdim=True)
        return (picked - largest - total.log()).squeeze(1), Softmax(z, largest, total, picked)

    def logit_gradient(self, softmax: Softmax, targets: Tensor, gradient: Tensor) -> Tensor:
        """Compute ``g (onehot - softmax)``, before the transform of the logits, in the softmax's memory."""
        slope = None
        if self.transform.cap is not None:
            # Where exp underflows to 0 the gradient is 0 as well, and any finite logit serves, except for the target's.
            z = softmax.exp.clamp_min(torch.finfo(self.wide).tiny).log_().add_(softmax.largest)
            z.scatter_(1, targets[:, None], softmax.picked)
            slope = z.div_(self.transform.cap).square_().neg_().add_(1)
        dz = softmax.exp.mul_(-gradient[:, None] / softmax.total)
        dz.scatter_add_(1, targets[:, None], gradient[:, None])
        if slope is not None:
            dz *= slope
        return dz.mul_(self.transform.scale) if self.transform.scale != 1 else dz

    def product(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        """Multiply, accumulating and returning the wide dtype."""
        if self.mixed:
            return torch.mm(a, b, out_dtype=self.wide)
        return torch.mm(a.to(self.wide), b, out=out)


class HeadGradient:
    """Accumulates those gradients of hidden states ``[tokens, hidden]``, weight and bias that are needed."""

    def __init__(self, head: HeadProducts, hidden: Tensor, needed: Sequence[bool]) -> None:
        self.head = head
        # wide, so that scaling later still saves values that float16 cannot hold
        self.hidden = torch.empty_like(hidden, dtype=head.wide) if needed[0] else None
        # transposed, since that product is faster on a CPU
        self.matrix = hidden.new_zeros(head.weight.T.shape, dtype=head.wide) if needed[1] else None
        self.bias = hidden.new_zeros(len(head.weight), dtype=head.wide) if needed[2] else None

    def within(self, tokens: slice) -> HeadGradient:
        """Restrict to some of the tokens; weight and bias are shared."""
        view = copy.copy(self)
        view.hidden = None if self.hidden is None else self.hidden[tokens]
        return view

    def scaled(self, factor: Tensor) -> HeadGradient:
        """Multiply all gradients by a number, in place."""
        for gradient in (self.hidden, self.matrix, self.bias):
            if gradient is not None:
                gradient *= factor
        return self

    def add(self, chunk: slice, hidden: Tensor, dz: Tensor) -> None:
        """Backpropagate the gradient ``dz`` of the chunk's logits, ``[rows, vocab]``."""
        head = self.head
        if self.bias is not None:
            self.bias += dz.sum(dim=0)
        if head.mixed:
            dz, unit = _narrowed(dz, head.dtype)
            if self.hidden is not None:
                self.hidden[chunk] = head.product(dz, head.weight).mul_(unit)
            if self.matrix is not None:
                self.matrix += head.product(hidden.T, dz).mul_(unit)
            return
        if self.hidden is not None:
            self.hidden[chunk] = dz @ head.weight
        if self.matrix is not None:
            self.matrix.addmm_(hidden.to(head.wide).T, dz)

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the three in the dtypes of hidden states, weight and bias; None where not needed."""
        weight = None if self.matrix is None else self.matrix.T.to(self.head.dtype)
        bias_dtype = self.head.bias_dtype
        return self.hidden, weight, None if self.bias is None or bias_dtype is None else self.bias.to(bias_dtype)


def _narrowed(dz: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
    """Convert a gradient to half precision, and return its unit; the argument is overwritten.

    The loss scale of float16 training applies after this, too late for entries below 6e-8, which float16 cannot hold.
    So for float16 the unit is chosen by the largest entry.
    """
    if dtype != torch.float16:
        return dz.to(dtype), 1.0
    low, high = dz.aminmax()
    unit = torch.maximum(-low, high).clamp_min(torch.finfo(dz.dtype).tiny * 2**15) / 2**15
    return dz.div_(unit).to(dtype), unit
