"""This rank's part of a step's reduced gradient in DeepSpeed's ZeRO-2 optimiser."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from caldpo.distributed.grad_norm import clip_factor


class PartitionedGradients:
    """What lies in ``averaged_gradients``, or with offloading in the float32 copies' ``grad``, after a backward pass.

    Args:
        zero: DeepSpeed's optimiser, stage 2.
        device: where the ranks exchange numbers.
    """

    def __init__(self, zero: Any, device: torch.device) -> None:
        self.zero, self.device = zero, device
        self.discarded = False  # the step at hand is left out

    def norm(self) -> Float[Tensor, ""]:
        # norms of float32 parts, summed up: DeepSpeed's own gives -1 where an entry is not a number
        parts = [torch.linalg.vector_norm(part.float()) for part in self._parts()]
        square = torch.stack(parts).square().sum().to(self.device) if parts else torch.zeros((), device=self.device)
        dist.all_reduce(square)
        return square.sqrt()

    def clip(self, largest: float, norm: Float[Tensor, ""]) -> None:
        if self.discarded:
            return
        factor = clip_factor(largest, norm)
        for part in self._parts():
            part.mul_(factor.to(part.device))

    def discard(self) -> None:
        self.discarded = True
        for group in self.zero.averaged_gradients:
            self.zero.averaged_gradients[group] = None
            self.zero.all_grad_tensors[group] = None
        self.zero.zero_grad(set_to_none=True)
        if self.zero.cpu_offload:
            self.zero.reset_cpu_buffers()

    def _parts(self) -> list[Tensor]:
        if self.zero.cpu_offload:
            self.zero._wait_for_offload_copies()
            return [copy.grad for copy in self.zero.single_partition_of_fp32_groups]
        return [part for parts in self.zero.averaged_gradients.values() for part in parts]
