"""Exponentials of log-probs and log-ratios that stay finite in every dtype, with their gradients. Pure functions."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def exponent_limit(dtype: torch.dtype) -> float:
    """Half of the largest exponent whose exp is finite: the square of a gradient stays finite as well.

    Above it an exponential of this module is constant and its gradient 0; a loss logs the share of such pairs as
    ``clamped``.
    """
    return math.log(torch.finfo(dtype).max) / 2


def clamped_exp(x: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """``exp(x)``, constant above :func:`exponent_limit`."""
    return x.clamp(max=exponent_limit(x.dtype)).exp()


def power_link(x: Float[Tensor, " pairs"], alpha: float) -> Float[Tensor, " pairs"]:
    """``(1 - exp(-alpha x)) / alpha``, which is ``x`` at alpha 0; constant above :func:`exponent_limit`."""
    exponent = (-alpha * x).clamp(max=exponent_limit(x.dtype))
    # Below a rounding error of 1 the quotient is x to its last digit, also where alpha itself is 0 in this dtype.
    linear = exponent.abs() < torch.finfo(x.dtype).eps
    # expm1 keeps digits where alpha x is small
    curved = -torch.expm1(exponent.masked_fill(linear, 1.0)) / alpha if alpha else x
    return torch.where(linear, x, curved)
