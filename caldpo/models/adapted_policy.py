"""A policy with or without an adapter: its base, its weights, its reference, and how much of it is trained."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldpo.utils.collectives import is_first_rank
from caldpo.utils.stream_console import Console

REFERENCE = "reference"
"""Name, in PEFT's model, of the frozen adapter under which a policy is its own reference."""

_MAX_GROUPS = 8  # of parameters, in a line
# settings that change no output; the modules are in the names of the weights, and PEFT keeps them as a set
_NO_EFFECT = {"base_model_name_or_path", "revision", "peft_version", "inference_mode", "target_modules"}


def is_adapted(policy: PreTrainedModel) -> bool:
    """Whether the policy has an adapter, which can be disabled."""
    return hasattr(policy, "disable_adapter")


@contextmanager
def adapter_off(policy: Any) -> Iterator[PreTrainedModel]:
    """Disable the policy's adapter, or activate the reference's in its place, while active."""
    if not _has_reference(policy):
        with policy.disable_adapter():
            yield policy
        return
    active = policy.active_adapter
    policy.set_adapter(REFERENCE, inference_mode=True)
    try:
        yield policy
    finally:
        policy.set_adapter(active)


def _has_reference(policy: Any) -> bool:
    return REFERENCE in policy.peft_config


def reference_adapter(policy: Any) -> dict[str, Any] | None:
    """Settings, without names, of the frozen adapter under which a policy is its reference; None without one."""
    if not is_adapted(policy) or not _has_reference(policy):
        return None
    return {k: v for k, v in policy.peft_config[REFERENCE].to_dict().items() if k not in _NO_EFFECT}


def base_model(policy: Any) -> PreTrainedModel:
    """The model under the adapter, or the policy itself."""
    return policy.get_base_model() if is_adapted(policy) else policy


def base_copy(policy: Any) -> PreTrainedModel:
    """Copy the policy without its adapter, or under the reference's where there is one."""
    copied = copy.deepcopy(policy)
    if not is_adapted(policy):
        return copied
    if not _has_reference(policy):
        return copied.unload()
    copied.set_adapter(REFERENCE, inference_mode=True)
    for name in set(copied.peft_config) - {REFERENCE}:
        copied.delete_adapter(name)
    return copied


def without_wrappers(name: str) -> str:
    """Strip PEFT's wrappers from the name of a weight; experts in single tensors have several."""
    return re.sub(r"(\.base_layer)+(?=\.)", "", name)


def base_weights(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of the weights without the adapter, the same as if there had never been one.

    Those of the reference's adapter are among them, where there is one.
    """
    adapted = is_adapted(policy)
    for name, value in base_model(policy).state_dict().items():
        if not adapted:
            yield name, value
        elif ".lora_" not in name or f".{REFERENCE}." in name or name.endswith(f".{REFERENCE}"):
            yield without_wrappers(name), value


def set_dora_magnitudes(policy: Any) -> None:
    """Set DoRA's magnitudes ``m`` to the row norms that its forward computes, while the update is still 0.

    DoRA (Liu et al. 2024) is ``m V / |V|``, with ``m = |W|`` at the start. PEFT computes ``m`` before it brings the
    adapter into float32, or another dtype does so later; the policy would then start as another model than its base,
    by the last digit of bfloat16 in every row.
    """
    for module in policy.modules():
        for name, magnitude in getattr(module, "lora_magnitude_vector", {}).items():
            if name not in module.lora_A or isinstance(module.lora_A[name], nn.Conv2d):
                continue
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            if up.is_meta or bool(up.any()):  # on another rank, or trained
                continue
            trained = magnitude.weight.requires_grad
            magnitude.update_layer(
                base_layer=module.get_base_layer(), lora_A=down, lora_B=up, scaling=module.scaling[name]
            )
            magnitude.weight.requires_grad_(trained)


def count_parameters(policy: nn.Module) -> tuple[int, int]:
    """Count the parameters that take gradients, and all; tied ones once, an adapter's included."""
    parameters = list(policy.parameters())  # tied ones once
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def adapter_coverage(policy: Any) -> list[str]:
    """Describe in a line each what the policy's adapter trains and what it leaves out; empty without an adapter."""
    if not is_adapted(policy):
        return []
    covered_ids, added = set(), 0
    for module in policy.modules():
        if hasattr(module, "lora_A"):  # experts in single tensors have a wrapper for each, which names it
            base = module.get_base_layer()
            covered_ids.add(id(getattr(base, getattr(module, "parameter_name", "weight"))))
    covered: list[tuple[str, Tensor]] = []
    uncovered: list[tuple[str, Tensor]] = []
    for name, value in policy.get_base_model().named_parameters():
        if re.search(r"\.(lora_[AB]|lora_magnitude_vector)\.", name):
            added += value.numel() if value.requires_grad else 0
        else:
            (covered if id(value) in covered_ids else uncovered).append((without_wrappers(name), value))
    total = sum(_size(value) for _, value in covered + uncovered)
    matrices = [(name, value) for name, value in uncovered if value.dim() > 1]
    vectors = sum(_size(value) for _, value in uncovered if value.dim() <= 1)
    left_out = [*_groups(matrices), *([f"norms and biases ({vectors:,})"] if vectors else [])]
    lines = [f"adapter: {added:,} parameters are trained, on a base of {total:,}: {', '.join(_groups(covered))}"]
    if left_out:
        lines.append(f"adapter: left out, not trained (parameters): {', '.join(left_out)}")
    higher_rank = sum(_size(value) for _, value in uncovered if value.dim() > 2)
    if higher_rank:
        lines.append(
            f"adapter: {higher_rank / total:.0%} of the base are tensors of three dimensions (experts, convolutions),"
            " which adapter.target_modules does not reach: they are no linear layers; adapter=none trains them"
        )
    return lines


def print_adapter_coverage(policy: Any) -> None:
    for line in adapter_coverage(policy) if is_first_rank() else ():
        Console().print(line, soft_wrap=True, highlight=False, markup=False)


def _groups(named_values: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Sum parameters by name as ``model.layers.*.self_attn.q_proj (8,192)``, the largest first."""
    sizes: dict[str, int] = {}
    for name, value in named_values:
        group = re.sub(r"(?<=\.)\d+(?=\.)", "*", name).removesuffix(".weight")
        sizes[group] = sizes.get(group, 0) + _size(value)
    ordered = sorted(sizes, key=lambda group: -sizes[group])
    lines = [f"{group} ({sizes[group]:,})" for group in ordered[:_MAX_GROUPS]]
    rest = sum(sizes[group] for group in ordered[_MAX_GROUPS:])
    return [*lines, f"{len(ordered) - _MAX_GROUPS} more kinds ({rest:,})"] if rest else lines


def _size(value: Tensor) -> int:
    return value.numel() * (2 if value.dtype == torch.uint8 else 1)  # 4 bits each
