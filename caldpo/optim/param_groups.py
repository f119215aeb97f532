"""Which weights decay, and what kernels there are for them."""

from __future__ import annotations

from typing import Any

from torch import nn


def can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Whether PyTorch has a fused kernel for all these parameters: floating point, on a device that has one."""
    devices = ("cuda", "cpu")
    return all(p.is_floating_point() and p.device.type in devices for group in groups for p in group["params"])


def decay_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay, vectors without."""
    trainable = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
