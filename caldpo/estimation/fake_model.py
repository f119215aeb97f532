"""Models and batches of fake tensors, which have shapes and dtypes but no values and no memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from transformers import PreTrainedModel

from caldpo.data.collate import Layout, collate
from caldpo.data.pair import TokenizedPair
from caldpo.errors import CaldpoError, one_line
from caldpo.logprobs import LogprobEngine
from caldpo.logprobs.head import OutputHead, head_layer
from caldpo.logprobs.lm_head_ops import LogitTransform, cpu_as
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.logprobs.varlen_attention import flash_as_on
from caldpo.types import PairBatch

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""Exceptions of operations that depend on the values of fake tensors."""


class FakeLogprobEngine(LogprobEngine):
    """Log-prob engine of a model without values, which cannot be probed for its transform of the logits."""

    @property
    def head(self) -> OutputHead | None:
        """A plain linear head, as the engine uses it; None for any other, which is left to the model."""
        layer = head_layer(self.model)
        return OutputHead(layer, LogitTransform()) if type(layer) is nn.Linear else None


@contextlib.contextmanager
def fake_tensors(device: str) -> Iterator[FakeTensorMode]:
    """Make tensors fake inside the context, and let the log-prob engine split, widen and attend as on ``device``.

    The tensors claim to be on the CPU, whose kernels keep the same tensors for the backward pass: PyTorch has fake
    CUDA tensors only in its CUDA builds.
    """
    convert = nn.Module._apply
    grouped_mm = getattr(nn.functional, "grouped_mm", None)  # None before PyTorch 2.10
    log = logging.getLogger("torch._subclasses.fake_tensor")  # logs exceptions that are handled here
    was_disabled, log.disabled = log.disabled, True
    nn.Module._apply = _convert_by_replacing  # type: ignore[method-assign]
    if grouped_mm is not None:
        nn.functional.grouped_mm = _grouped_mm  # type: ignore[assignment]
    try:
        with cpu_as(device), flash_as_on(device), FakeTensorMode() as mode:
            yield mode
    finally:
        log.disabled = was_disabled
        nn.Module._apply = convert  # type: ignore[method-assign]
        if grouped_mm is not None:
            nn.functional.grouped_mm = grouped_mm


def _convert_by_replacing(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Replace ``Module._apply``: fake parameters cannot change their dtype in place."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, old in module._parameters.items():
        if old is not None and (new := function(old.detach())).dtype != old.dtype:
            module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else function(buffer)
    return module


def _grouped_mm(rows: Tensor, weights: Tensor, *, offs: Tensor | None = None, **options: object) -> Tensor:
    """Replace ``torch.nn.functional.grouped_mm``, the experts' product, whose fake version takes bfloat16 only.

    The kernel takes any dtype. Every row passes one expert, no matter which: the product with the first expert's
    matrix stands for all, while all matrices are kept for the backward pass and get a gradient.
    """
    return _OneExpert.apply(rows, weights)


class _OneExpert(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        return rows @ weights[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        _, weights = ctx.saved_tensors
        of_rows = gradient @ weights[0].T if ctx.needs_input_grad[0] else None
        return of_rows, torch.empty_like(weights) if ctx.needs_input_grad[1] else None


def fake_model(make: Callable[[], PreTrainedModel], name: Callable[[], str], key: str = "model") -> PreTrainedModel:
    """Build a model of fake tensors from its configuration alone; call it inside :func:`fake_tensors`.

    Raises:
        CaldpoError: with ``key`` and ``name``: the model's code needs values.
    """
    try:
        return make()
    except CaldpoError:
        raise
    except Exception:
        pass  # the meta device supports more operations
    try:
        with unset_fake_temporarily(), torch.device("meta"):
            model = make()
    except Exception as error:
        raise CaldpoError(
            f"this model cannot be built from tensors without values, so its memory is unknown ({one_line(error)})",
            key=key,
            value=name(),
            remedy="start the run itself with trainer.max_steps=1",
        ) from error
    replaced: dict[int, Tensor] = {}  # tied weights stay tied
    for module in model.modules():
        for attribute, old in [*module._parameters.items(), *module._buffers.items()]:
            if old is None:
                continue
            if id(old) not in replaced:
                empty = torch.empty(old.shape, dtype=old.dtype)
                is_weight = isinstance(old, nn.Parameter)
                replaced[id(old)] = nn.Parameter(empty, requires_grad=old.requires_grad) if is_weight else empty
            setattr(module, attribute, replaced[id(old)])
    return model


def to_dtype(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """Convert the floating-point weights and buffers of a model in place; None changes nothing."""
    if dtype is None:
        return model
    converted: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not old.is_floating_point():
                continue  # quantised
            if id(old) not in converted:
                converted[id(old)] = nn.Parameter(old.detach().to(dtype), requires_grad=old.requires_grad)
            setattr(module, name, converted[id(old)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))
    return model


def fake_batch(batch: PairBatch, mode: FakeTensorMode) -> PairBatch:
    """Convert a batch to fake tensors of its shapes and dtypes."""
    fields: dict[str, Any] = {n: mode.from_tensor(v) if isinstance(v, Tensor) else v for n, v in vars(batch).items()}
    return PairBatch(**fields)


def supports_packing(model: PreTrainedModel, mode: FakeTensorMode) -> bool:
    """Try whether a model runs over packed rows; True where that cannot be known without values."""
    pair = TokenizedPair([1], [1], [1], None, None, 0, "")

    def runs(layout: Layout) -> bool:
        with unset_fake_temporarily():  # token ids need values
            batch = collate([pair], 0, layout=layout)
        try:
            with torch.no_grad():
                FakeLogprobEngine(model)(fake_batch(batch, mode))
        except NEEDS_VALUES:
            return True
        except Exception:
            return False
        return True

    use_packed_attention(model)
    return runs("packed") or not runs("padded")  # failing at both is due to the missing values
