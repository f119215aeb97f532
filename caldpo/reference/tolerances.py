"""Tolerances of log-probs for rounding, and the check that policy and reference agree before the first step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from caldpo.errors import CaldpoError
from caldpo.reference.reference_base import ReferenceContext
from caldpo.types import PairLogps

HALF_ROUNDING = 2e-3
"""Tolerance of bfloat16 and float16. A model of hidden size 256 shows 5e-5 with other pairs in the batch and 3e-4
compiled; large ones, and short responses, more. A reference whose log-probs are off by one per cent is far outside."""

SINGLE_PAIR_FACTOR = 10.0
"""Factor of a single pair's tolerance to the mean's: one token's rounding is not averaged over many."""


def rounding_tolerance(context: ReferenceContext) -> float:
    """Mean change of log-probs by other pairs in the batch or compiled layers, relative to ``1 + |log-prob|``.

    A single pair may change by :data:`SINGLE_PAIR_FACTOR` times as much.
    """
    with context.precision():
        half = torch.is_autocast_enabled(context.device.type)
    dtype = context.policy.dtype
    if half or dtype in (torch.bfloat16, torch.float16):
        return HALF_ROUNDING
    if torch.get_float32_matmul_precision() != "highest":
        return 1e-4
    return 1e-9 if dtype == torch.float64 else 1e-5


def exceeds_rounding(largest: float, mean: float, rounding: float) -> bool:
    """Whether relative differences of pairs, the largest and the mean, exceed ``rounding``."""
    return not (mean <= rounding and largest <= SINGLE_PAIR_FACTOR * rounding)  # true also of NaN


def relative_difference(difference: Tensor, logps: Tensor) -> Tensor:
    """Compute sizes of differences, relative to ``1 + |log-prob|``; of any shape."""
    return difference.abs() / (1 + logps.abs())


def start_ratios(logps: PairLogps, weight: Tensor) -> Tensor:
    """Compute a batch's log-ratios relative to ``1 + |log-prob|``: the largest, their sum, and their number."""
    log_ratios = torch.stack([logps.chosen_log_ratio, logps.rejected_log_ratio])
    sizes = relative_difference(log_ratios, torch.stack([logps.policy_chosen, logps.policy_rejected])).detach()
    sizes = torch.where(weight > 0, sizes, 0)
    return torch.stack([sizes.max(), sizes.sum(), 2 * (weight > 0).sum().to(sizes)])


def largest_and_mean(batches: list[Tensor]) -> tuple[float, float]:
    """Reduce the results of :func:`start_ratios` of several batches; one transfer from the device."""
    largest, sums, counts = torch.stack(batches).unbind(dim=1)
    top, mean = torch.stack([largest.max(), sums.sum() / counts.sum().clamp_min(1)]).tolist()
    return top, mean


def check_start(
    largest: float,
    mean: float,
    policy: torch.dtype,
    reference: torch.dtype,
    rounding: float = 0.0,
    of: Literal["held-out", "training"] = "held-out",
) -> None:
    """Check that log-ratios are 0 before the first step, up to rounding relative to ``1 + |log-prob|``.

    In one dtype, policy and reference do the same arithmetic and agree almost to the last digit. In two, the
    log-probs of long responses differ by rounding, which is noise in every log-ratio of the run. So they may where
    the reference's were computed in other batches or by other kernels (``rounding``).

    Args:
        largest, mean: relative log-ratios, see :func:`largest_and_mean`.
        policy, reference: dtypes of the weights.
        rounding: of the reference's log-probs.

    Raises:
        CaldpoError: the reference is not the model that the policy starts from.
    """
    if not exceeds_rounding(largest, mean, max(1e-5 if policy == reference else 2e-2, rounding)):
        return
    remedy = "start the policy from the reference's weights, or declare another reference with"
    if of == "training":
        detail = (
            ": the reference's log-probs of the training pairs are wrong, while those of the held-out pairs are not"
        )
        remedy = f"with reference=precomputed, remove the training pairs' log-probs from reference.cache; else {remedy}"
    else:
        detail = ""
    raise CaldpoError(
        f"policy ({policy}) and reference ({reference}) differ before the first step{detail}: log-ratios of {of} pairs"
        f" up to {largest:.2g} and on average {mean:.2g} of the log-probs, where 0 is expected",
        remedy=f"{remedy} reference.distinct=true",
    )
