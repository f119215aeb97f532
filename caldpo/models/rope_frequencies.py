"""Rotary frequencies that follow the longest row of a batch: computed row by row, so that rows are independent.

LongRoPE (Ding et al. 2024) has one set of frequencies for sequences up to the original length and another beyond it;
dynamic NTK scaling has another for every length beyond. transformers takes one set for a whole batch, by its longest
row, and the dynamic one remembers batches before: a row's log-probs would depend on its batch mates, by nats. Here
each row gets the frequencies that it has alone.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

_BY_LENGTH = ("longrope", "dynamic")
_DONE = "frequencies_by_row"


def frequencies_by_row(model: nn.Module) -> None:
    """Compute rotary frequencies that depend on a row's length for each row alone, from now on.

    A row's length is its largest position plus one, so that padding must not have larger positions. Models with other
    frequencies are left as they are.
    """
    for module in model.modules():
        if _types(module) and not getattr(module, _DONE, False):
            module.register_forward_hook(_each_row, with_kwargs=True)
            setattr(module, _DONE, True)


def same_up_to(model: nn.Module) -> int | None:
    """Tokens up to which all rows have the same frequencies; None where that is any number."""
    return min((limit for module in model.modules() for limit in _limits(module)), default=None)


def _each_row(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    given = inspect.signature(module.forward).bind(*args, **kwargs)
    positions: Tensor | None = given.arguments.get("position_ids")
    if positions is None or positions.ndim < 2:
        return output
    if 1 < positions.shape[-1] <= min(_limits(module)):  # no row can be longer, which is known without looking
        return _alone(module, given) if _is_dynamic(module) else output
    rows = []
    for row in positions.split(1, dim=-2):  # before it, some makes have one dimension for each axis of an image
        given.arguments["position_ids"] = row
        rows.append(_alone(module, given))
    if isinstance(output, Tensor):
        return torch.cat(rows, dim=-3)
    return tuple(torch.cat(parts, dim=-3) for parts in zip(*rows, strict=True))


def _alone(module: nn.Module, given: inspect.BoundArguments) -> Any:
    """Frequencies as of a model that has seen no batch yet."""
    for prefix, kind in _types(module).items():
        if "dynamic" in kind:
            original: Tensor = getattr(module, f"{prefix}original_inv_freq")
            now: Tensor = getattr(module, f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", original.to(now.device), persistent=False)
            longest = f"{prefix}max_seq_len_cached"
            setattr(module, longest if hasattr(module, longest) else "max_seq_len_cached", module.original_max_seq_len)
    return module.forward(*given.args, **given.kwargs)


def _types(module: nn.Module) -> dict[str, str]:
    """Kinds of frequencies that depend on length, by the prefix of the names of their values."""
    kinds = getattr(module, "rope_type", None)
    by_prefix = {f"{layer}_": kind for layer, kind in kinds.items()} if isinstance(kinds, dict) else {"": kinds}
    return {p: k for p, k in by_prefix.items() if isinstance(k, str) and any(name in k for name in _BY_LENGTH)}


def _is_dynamic(module: nn.Module) -> bool:
    return any("dynamic" in kind for kind in _types(module).values())


def _limits(module: nn.Module) -> list[int]:
    found = []
    for prefix, kind in _types(module).items():
        settings: Any = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
        settings = settings.get(prefix.removesuffix("_"), settings) if prefix else settings
        original = settings.get("original_max_position_embeddings")
        if "dynamic" in kind or original is None:
            original = getattr(module, "original_max_seq_len", original)
        found.append(int(original or 0))
    return found
