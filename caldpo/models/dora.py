"""Row lengths of DoRA (Liu et al. 2024): ``m * V / |V|`` with ``m = |W|`` at the start, to the last digit."""

from __future__ import annotations

from typing import Any

import torch


def measure_lengths(policy: Any) -> None:
    """Let DoRA's row lengths be those that its forward measures, where the update is still 0.

    PEFT takes them before it brings the adapter into float32, or another dtype does so later; the policy would then
    start as another model than its base, by the last digit of bfloat16 in every row.
    """
    for module in policy.modules():
        for name, lengths in getattr(module, "lora_magnitude_vector", {}).items():
            if name not in module.lora_A or isinstance(module.lora_A[name], torch.nn.Conv2d):
                continue
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            if up.is_meta or bool(up.any()):  # on another rank, or trained
                continue
            trained = lengths.weight.requires_grad
            lengths.update_layer(
                base_layer=module.get_base_layer(), lora_A=down, lora_B=up, scaling=module.scaling[name]
            )
            lengths.weight.requires_grad_(trained)
