"""The matmul peak of a device: the fastest of a few large square products."""

from __future__ import annotations

import torch

from caldpo.bench.measure import now

SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}
REPEATS = 5


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations per second of the best size and repetition."""
    return max(_rate(size, device, dtype) for size in SIZES[device])


def _rate(size: int, device: str, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = left @ right  # the first one warms up
    best = float("inf")
    for _ in range(REPEATS):
        started = now(device)
        torch.matmul(left, right, out=out)
        best = min(best, now(device) - started)
    return 2 * size**3 / best
