"""Separate a model's output head, which turns hidden states into logits.

After its head a model may scale and soft-cap logits, by settings of any name. So the model is probed: one token goes
through it, the head's input is replaced by a hidden state that is large enough for a cap to show, and the logits are
compared with the head's own output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from caldpo.logprobs.lm_head_ops import LogitTransform
from caldpo.models.model_forward import NonFiniteLogitsError, evaluating

_PROBE_LOGIT = 64.0  # largest logit of the probe: twice the usual caps, so that a cap of 30 or 50 shows
_CAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logit_softcap", "softcap")
_TINY = 1e-20


@dataclass(frozen=True, slots=True)
class OutputHead:
    """``logits = transform(hidden weight^T + bias)``."""

    layer: nn.Linear
    transform: LogitTransform


class NoHeadError(Exception):
    """The head cannot be separated from the model; the message tells why."""


@torch.no_grad()
def output_head(model: nn.Module) -> OutputHead:
    """Find the output head of a model by probing it.

    Raises:
        NoHeadError: there is none, it is not a plain linear layer, or the logits are another function of its output.
        NonFiniteLogitsError: logits of finite hidden states are non-finite.
    """
    layer = head_layer(model)
    if layer is None:
        raise NoHeadError("it names no output head")
    if hasattr(layer, "base_layer") or hasattr(layer, "modules_to_save"):
        raise NoHeadError("an adapter wraps its output head")
    if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
        raise NoHeadError(f"its output head is a {type(layer).__name__}, not a plain linear layer")
    hidden, raw, logits = _probe(model, layer)
    expected = nn.functional.linear(hidden.to(layer.weight.dtype), layer.weight, layer.bias)
    if not _close(raw, expected):
        raise NoHeadError(f"its output head, a {type(layer).__name__}, does more than multiply by a matrix")
    for transform in _candidates(model, raw, logits):
        if _close(transform(raw.clone()), logits):
            return OutputHead(layer, transform)
    raise NoHeadError("its transform of the logits is neither scaling nor soft-capping")


def head_layer(model: nn.Module) -> nn.Module | None:
    """Find the module that computes logits from hidden states; None if the model does not name it."""
    get_head: Any = getattr(model, "get_output_embeddings", None)
    layer = None if get_head is None else get_head()
    return layer if isinstance(layer, nn.Module) else None


@contextmanager
def hooked(layer: nn.Module, hook: Any, *, before: bool = True) -> Iterator[None]:
    """Hook the layer's inputs, or its output, while the context lasts."""
    handle = layer.register_forward_pre_hook(hook) if before else layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _probe(model: nn.Module, layer: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Compute hidden state, head output and logits of one token: float32 vectors (float64 for a float64 model)."""
    captured: dict[str, Tensor] = {}
    wide = torch.promote_types(layer.weight.dtype, torch.float32)

    def replace(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        # not the token's own hidden state, which may be 0 for a padding token
        drawn = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(0)).to(layer.weight)
        largest = nn.functional.linear(drawn, layer.weight).abs().max().clamp_min(_TINY)
        if not largest.isfinite():
            raise NonFiniteLogitsError
        captured["hidden"] = (drawn * (_PROBE_LOGIT / largest)).to(inputs[0].dtype)
        return (captured["hidden"], *inputs[1:])

    def keep(_: nn.Module, inputs: Any, output: Tensor) -> None:
        captured["raw"] = output

    token = torch.zeros(1, 1, dtype=torch.long, device=layer.weight.device)
    with (
        evaluating(model),
        torch.autocast(token.device.type, enabled=False),
        hooked(layer, replace),
        hooked(layer, keep, before=False),
    ):
        logits = model(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False).logits
    if "raw" not in captured or captured["raw"].shape != logits.shape:
        raise NoHeadError("its logits do not come from the output head that it names")
    # -inf is intended: some models exclude tokens so
    broken = any(bool((x.isnan() | (x == torch.inf)).any()) for x in (captured["raw"], logits))
    if broken and bool(captured["hidden"].isfinite().all()):
        raise NonFiniteLogitsError
    return captured["hidden"].flatten(), captured["raw"].flatten().to(wide), logits.flatten().to(wide)


def _candidates(model: Any, raw: Tensor, logits: Tensor) -> Iterator[LogitTransform]:
    """Yield transforms that may explain ``logits``, simplest first."""
    yield LogitTransform()
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    caps = [float(c) for name in _CAPS if isinstance(c := getattr(config, name, None), int | float) and c]
    for cap in caps:
        yield LogitTransform(cap=cap)
    # The scale as the model states it, where that is as near as the one measured in rounded logits.
    measured = float((raw * logits).sum() / (raw * raw).sum())
    stated = [float(v) for v in _numbers_of(model, config) if v]
    for scale in sorted({s for v in stated for s in (v, 1 / v)}, key=lambda s: abs(s - measured)):
        yield LogitTransform(scale=scale)
        for cap in caps:
            yield LogitTransform(scale=scale, cap=cap)


def _numbers_of(model: Any, config: Any) -> Iterator[float]:
    """Yield the numbers that the configuration and the model itself name a scale or multiplier."""
    for holder in (config, model):
        for name, value in list(vars(holder).items()) if holder is not None else ():
            if isinstance(value, int | float) and ("scal" in name or "multiplier" in name):
                yield float(value)


def _close(logits: Tensor, expected: Tensor) -> bool:
    """Whether two rows of logits agree up to rounding in their dtype."""
    tolerance = 1e-4 if logits.dtype == expected.dtype == torch.float64 else 2e-2
    largest = expected.abs().max().float()  # an infinite one would tolerate anything
    return bool(largest.isfinite() & ((logits - expected.to(logits.dtype)).abs().max() <= tolerance * largest))
