"""Which parameters of a policy are trained, in words: all, or an adapter's, with the layers that it leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from caldpo.models.adapter import is_adapted

_NUMBER = re.compile(r"\.\d+\.")
_SHOWN = 6


@dataclass(frozen=True)
class Trainable:
    """Parameters of a policy.

    Args:
        trained: how many take gradients; tied ones count once.
        total: how many there are, an adapter's included.
        left_out: of a policy under an adapter, parameters without one by their layers' name, the largest first; those
            of a name in several layers together.
    """

    trained: int
    total: int
    left_out: dict[str, int]

    def __str__(self) -> str:
        share = 100 * self.trained / max(self.total, 1)
        return f"{self.trained:,} of {self.total:,} parameters ({share:.3g} %)"

    @property
    def told_left_out(self) -> str | None:
        """The layers without an adapter on one line; None where there is none."""
        if not self.left_out:
            return None
        told = [f"{name} {count:,}" for name, count in list(self.left_out.items())[:_SHOWN]]
        rest = list(self.left_out.values())[_SHOWN:]
        return ", ".join([*told, *([f"{len(rest)} more {sum(rest):,}"] if rest else [])])


def find_trainable(policy: PreTrainedModel) -> Trainable:
    """Count the parameters of a policy as it is going to be trained."""
    parameters = dict(policy.named_parameters())  # tied ones once
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    total = sum(p.numel() for p in parameters.values())
    return Trainable(trained, total, _left_out(policy) if is_adapted(policy) else {})


def _left_out(policy: nn.Module) -> dict[str, int]:
    """Matrices of the base that no adapter changes, by name without the layers' numbers; norms and biases are none."""
    changed = set(_changed(policy))
    found: dict[str, int] = {}
    for name, parameter in policy.named_parameters():
        if ".lora_" in name or parameter.ndim < 2 or id(parameter) in changed:
            continue
        plain = _NUMBER.sub(".*.", name.removeprefix("base_model.model.").replace(".base_layer", ""))
        short = plain.rpartition("*.")[2].removesuffix(".weight")
        found[short] = found.get(short, 0) + parameter.numel()
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _changed(policy: nn.Module) -> Iterator[int]:
    """Identities of the parameters that an adapter's layer stands in front of."""
    for module in policy.modules():
        base = getattr(module, "base_layer", None)
        if not isinstance(base, nn.Module) or not any("lora_" in name for name, _ in module.named_children()):
            continue
        one = getattr(module, "parameter_name", None)  # PEFT's wrapper of a single tensor, as of fused experts
        inner: Any = base
        while one is not None and hasattr(inner, "base_layer"):  # several tensors of a module: one wrapped in another
            inner = inner.base_layer
        yield from (id(p) for name, p in inner.named_parameters(recurse=False) if one is None or name == one)
