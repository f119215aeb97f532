"""A linear layer of 8 bits that computes the same in training and in evaluation mode; imports bitsandbytes."""

from __future__ import annotations

import bitsandbytes


class Linear8bit(bitsandbytes.nn.Linear8bitLt):
    """On CPUs bitsandbytes rounds inputs in evaluation mode alone: policy and reference would differ by their mode."""

    def train(self, mode: bool = True) -> Linear8bit:
        """Stays in training mode, in which nothing but the matrix is rounded on a CPU; on a GPU both modes are one."""
        super().train(True)
        return self
