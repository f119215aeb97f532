"""Norm, clip and discard the reduced gradients of an optimiser step, wherever a strategy stores them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from caldpo.distributed.fsdp import full_tensor


class Gradients(Protocol):
    """Gradients of one optimiser step, reduced over ranks, before the update."""

    def norm(self) -> Float[Tensor, ""]:
        """Compute the Euclidean norm of all, on all ranks together; NaN or infinite where an entry is."""
        ...

    def clip(self, max_norm: float, norm: Float[Tensor, ""]) -> None:
        """Scale them so that their norm, as computed by :meth:`norm`, is at most ``max_norm``."""
        ...

    def discard(self) -> None:
        """Skip this step's update: weights and optimiser state stay as they are."""
        ...


class LocalGradients:
    """Gradients in each parameter's ``grad``: full, or this rank's shard (FSDP2)."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy

    def norm(self) -> Float[Tensor, ""]:
        return full_tensor(get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None]))

    def clip(self, max_norm: float, norm: Float[Tensor, ""]) -> None:
        # by the norm at hand, so that it is not computed again
        clip_grads_with_norm_([p for p in self.policy.parameters() if p.grad is not None], max_norm, norm)

    def discard(self) -> None:
        for parameter in self.policy.parameters():
            parameter.grad = None  # optimisers skip parameters without a gradient, and their state


class ZeroGradients:
    """This rank's partition in DeepSpeed's ZeRO-2 optimiser.

    It lies in ``averaged_gradients``, or with offloading in the ``grad`` of the float32 copies.
    """

    def __init__(self, zero: Any, device: torch.device) -> None:
        self.zero, self.device = zero, device
        self.discarded = False  # the current step's

    def norm(self) -> Float[Tensor, ""]:
        # from float32 partitions: DeepSpeed's own norm is -1 where an entry is not finite
        partitions = [torch.linalg.vector_norm(part.float()) for part in self._partitions()]
        none = torch.zeros((), device=self.device)
        square = torch.stack(partitions).square().sum().to(self.device) if partitions else none
        dist.all_reduce(square)
        return square.sqrt()

    def clip(self, max_norm: float, norm: Float[Tensor, ""]) -> None:
        if self.discarded:
            return
        factor = clip_factor(max_norm, norm)
        for part in self._partitions():
            part.mul_(factor.to(part.device))

    def discard(self) -> None:
        self.discarded = True
        for group in self.zero.averaged_gradients:
            self.zero.averaged_gradients[group] = None
            self.zero.all_grad_tensors[group] = None
        self.zero.zero_grad(set_to_none=True)
        if self.zero.cpu_offload:
            self.zero.reset_cpu_buffers()

    def _partitions(self) -> list[Tensor]:
        if self.zero.cpu_offload:
            self.zero._wait_for_offload_copies()
            return [copy.grad for copy in self.zero.single_partition_of_fp32_groups]
        return [part for parts in self.zero.averaged_gradients.values() for part in parts]


def clip_factor(max_norm: float, norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Compute the factor by which PyTorch clips gradients of this norm: at most 1, and NaN where the norm is."""
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)
