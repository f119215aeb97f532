"""How far log-probs of one model may lie apart by rounding alone, and whether they lie further."""

from __future__ import annotations

import torch
from torch import Tensor

from caldpo.reference.reference_base import ReferenceContext

HALF = 2e-3
"""Of bfloat16 and float16. A model of hidden size 256 shows 5e-5 with other pairs in the batch and 3e-4 compiled;
large ones, and short responses, more. A reference whose log-probs are off by one per cent is far outside."""

SINGLE = 10.0
"""A single pair may lie so many times as far as pairs on average: one token's rounding is not averaged over many."""


def rounding_of(context: ReferenceContext) -> float:
    """What other pairs in the batch, or compiled layers, may do to log-probs, relative to ``1 + |log-prob|``.

    On average over pairs; a single one may be off by :data:`SINGLE` times as much.
    """
    with context.precision():
        half = torch.is_autocast_enabled(context.device.type)
    dtype = context.policy.dtype
    if half or dtype in (torch.bfloat16, torch.float16):
        return HALF
    if torch.get_float32_matmul_precision() != "highest":
        return 1e-4
    return 1e-9 if dtype == torch.float64 else 1e-5


def beyond(largest: float, mean: float, rounding: float) -> bool:
    """Whether relative differences of pairs are more than ``rounding``."""
    return not (mean <= rounding and largest <= SINGLE * rounding)  # true also of what is not a number


def relative(difference: Tensor, logps: Tensor) -> Tensor:
    """Sizes of differences, relative to ``1 + |log-prob|``; of any shape."""
    return difference.abs() / (1 + logps.abs())
