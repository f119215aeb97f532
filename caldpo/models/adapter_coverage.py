"""What an adapter trains of a policy, and what it leaves as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from caldpo.models.adapters import is_adapted, without_wrappers
from caldpo.utils.collectives import is_first_rank

_SHOWN = 8  # groups that are named in a line


def coverage(policy: Any) -> list[str]:
    """One line of what the policy's adapter trains, and one of what it leaves out; empty without an adapter.

    Names are those of the model's parameters, with ``*`` for the number of a layer or an expert; each group has its
    parameters counted. Vectors (norms, biases) are counted together.
    """
    if not is_adapted(policy):
        return []
    covered, added = set(), 0
    for module in policy.modules():
        if hasattr(module, "lora_A"):  # experts in single tensors have a wrapper for each, which names it
            base = module.get_base_layer()
            covered.add(id(getattr(base, getattr(module, "parameter_name", "weight"))))
    under: list[tuple[str, Tensor]] = []
    left: list[tuple[str, Tensor]] = []
    for name, value in policy.get_base_model().named_parameters():
        if re.search(r"\.(lora_[AB]|lora_magnitude_vector)\.", name):
            added += value.numel() if value.requires_grad else 0
        else:
            (under if id(value) in covered else left).append((without_wrappers(name), value))
    whole = sum(_size(value) for _, value in under + left)
    matrices = [(name, value) for name, value in left if value.dim() > 1]
    vectors = sum(_size(value) for _, value in left if value.dim() <= 1)
    named = [*_groups(matrices), *([f"norms and biases ({vectors:,})"] if vectors else [])]
    lines = [f"adapter: {added:,} parameters are trained, on a base of {whole:,}: {', '.join(_groups(under))}"]
    if named:
        lines.append(f"adapter: left out, not trained (parameters): {', '.join(named)}")
    cubes = sum(_size(value) for _, value in left if value.dim() > 2)
    if cubes:
        lines.append(
            f"adapter: {cubes / whole:.0%} of the base are tensors of three dimensions (experts, convolutions), which"
            " adapter.target_modules does not reach: they are no linear layers; adapter=none trains them"
        )
    return lines


def print_coverage(policy: Any) -> None:
    """Print :func:`coverage` on the first rank."""
    if is_first_rank():
        for line in coverage(policy):
            Console().print(line, soft_wrap=True, highlight=False, markup=False)


def _groups(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """``model.layers.*.self_attn.q_proj (8,192)``, the largest first."""
    sizes: dict[str, int] = {}
    for name, value in named:
        group = re.sub(r"(?<=\.)\d+(?=\.)", "*", name).removesuffix(".weight")
        sizes[group] = sizes.get(group, 0) + _size(value)
    ordered = sorted(sizes, key=lambda group: -sizes[group])
    listed = [f"{group} ({sizes[group]:,})" for group in ordered[:_SHOWN]]
    rest = sum(sizes[group] for group in ordered[_SHOWN:])
    return [*listed, f"{len(ordered) - _SHOWN} more kinds ({rest:,})"] if rest else listed


def _size(value: Tensor) -> int:
    return value.numel() * (2 if value.dtype == torch.uint8 else 1)  # 4 bits each
