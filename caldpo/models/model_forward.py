"""Run forward passes in which rows are independent: evaluation mode, accepted inputs, rotary frequencies by row.

LongRoPE (Ding et al. 2024) has one set of frequencies for sequences up to the original length and another beyond it;
dynamic NTK scaling has another for every length beyond. transformers takes one set for a whole batch, by its longest
row, and the dynamic one remembers batches before: a row's log-probs would depend on its batch mates, by nats.
:func:`use_rowwise_frequencies` gives each row the frequencies that it has alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from caldpo.errors import CaldpoError
from caldpo.models.adapted_policy import base_model

Model = TypeVar("Model", bound=nn.Module)
_LENGTH_DEPENDENT = ("longrope", "dynamic")
_HOOKED = "rowwise_frequencies"  # attribute of a module that has the hook


class NonFiniteLogitsError(CaldpoError):
    """A model computes NaN or infinite logits, so that it can be neither examined nor trained."""

    def __init__(self) -> None:
        super().__init__(
            "the model's logits are non-finite (NaN or infinite)",
            key="model",
            remedy="check its weights, which may be broken; a model in float16 may overflow: load it in bfloat16 or"
            " float32",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return NonFiniteLogitsError, ()


@contextmanager
def evaluating(model: Model) -> Iterator[Model]:
    """Put a model in evaluation mode without gradients; afterwards restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training


def accepted_names(model: Any) -> set[str] | None:
    """Name the keywords that a model's forward takes; None if it takes any."""
    parameters = inspect.signature(base_model(model).forward).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def use_rowwise_frequencies(model: nn.Module) -> None:
    """Compute rotary frequencies that depend on a row's length for each row alone, from now on.

    A row's length is its largest position plus one, so that padding must not have larger positions. Models with other
    frequencies are left as they are.
    """
    for module in model.modules():
        if _length_dependent_types(module) and not getattr(module, _HOOKED, False):
            module.register_forward_hook(_recompute_rows, with_kwargs=True)
            setattr(module, _HOOKED, True)


def frequency_change_length(model: nn.Module) -> int | None:
    """Longest row, in tokens, up to which all rows have the same frequencies; None where that is any number."""
    return min((limit for module in model.modules() for limit in _limits(module)), default=None)


def _recompute_rows(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    positions: Tensor | None = bound.arguments.get("position_ids")
    if positions is None or positions.ndim < 2:
        return output
    if 1 < positions.shape[-1] <= min(_limits(module)):  # no row can be longer, which is known without looking
        return _forward_alone(module, bound) if _is_dynamic(module) else output
    rows = []
    for row in positions.split(1, dim=-2):  # before it, some makes have one dimension for each axis of an image
        bound.arguments["position_ids"] = row
        rows.append(_forward_alone(module, bound))
    if isinstance(output, Tensor):
        return torch.cat(rows, dim=-3)
    return tuple(torch.cat(parts, dim=-3) for parts in zip(*rows, strict=True))


def _forward_alone(module: nn.Module, bound: inspect.BoundArguments) -> Any:
    """Compute frequencies as a model does that has seen no batch yet."""
    for prefix, kind in _length_dependent_types(module).items():
        if "dynamic" in kind:
            original: Tensor = getattr(module, f"{prefix}original_inv_freq")
            current: Tensor = getattr(module, f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", original.to(current.device), persistent=False)
            longest = f"{prefix}max_seq_len_cached"
            setattr(module, longest if hasattr(module, longest) else "max_seq_len_cached", module.original_max_seq_len)
    return module.forward(*bound.args, **bound.kwargs)


def _length_dependent_types(module: nn.Module) -> dict[str, str]:
    """Map the prefix of a module's frequencies to their kind, for kinds that depend on length."""
    kinds = getattr(module, "rope_type", None)
    by_prefix = {f"{layer}_": kind for layer, kind in kinds.items()} if isinstance(kinds, dict) else {"": kinds}
    return {p: k for p, k in by_prefix.items() if isinstance(k, str) and any(name in k for name in _LENGTH_DEPENDENT)}


def _is_dynamic(module: nn.Module) -> bool:
    return any("dynamic" in kind for kind in _length_dependent_types(module).values())


def _limits(module: nn.Module) -> list[int]:
    limits = []
    for prefix, kind in _length_dependent_types(module).items():
        settings: Any = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
        settings = settings.get(prefix.removesuffix("_"), settings) if prefix else settings
        original = settings.get("original_max_position_embeddings")
        if "dynamic" in kind or original is None:
            original = getattr(module, "original_max_seq_len", original)
        limits.append(int(original or 0))
    return limits
