"""Memory of a training step, by going through one on tensors that have shapes and no content.

The policy's skeleton, the log-prob engine, autocast, gradient checkpointing and backward are those of the run, so
that whatever an architecture keeps for its backward pass is counted as it is, without formulas.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
from caldpo.estimation.live_bytes import CASTS, HEAD, OTHER, WEIGHTS, LiveBytes
from caldpo.logprobs import LOGITS_CACHE_MIB, LogprobEngine
from caldpo.logprobs.head import OutputHead, head_layer
from caldpo.logprobs.lm_head_ops import CHUNK_BYTES, WIDE_RESULTS, LogitTransform
from caldpo.logprobs.packed_attention import use_packed_attention
from caldpo.models.model_source import ModelSource
from caldpo.types import PairBatch

WEIGHT_DTYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
"""Precisions in which Lightning converts the policy's weights."""
AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precisions in which weights keep their dtype, and arithmetic has another."""

# What a model that looks into its tensors raises, where they have no content.
Unknowable = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of one micro-batch beyond weights, gradients, optimiser and reference.

    Args:
        casts: copies of weights in the dtype of the arithmetic: all of them under autocast, else the head's.
        activations: what the backward pass needs of the forward pass.
        head: the most that logits and the gradient of the output head take at any moment.
        working: what comes on top of all these at the most demanding moment.
    """

    casts: int
    activations: int
    head: int
    working: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.casts + self.activations + self.head + self.working


class SkeletonEngine(LogprobEngine):
    """The log-prob engine of a model without content, which cannot be asked what it does to its logits."""

    @property
    def head(self) -> OutputHead | None:
        """A plain linear head as the engine uses it; any other is left to the model."""
        layer = head_layer(self.model)
        return OutputHead(layer, LogitTransform()) if type(layer) is nn.Linear else None


@contextlib.contextmanager
def fake_tensors(device: str) -> Iterator[FakeTensorMode]:
    """Tensors made inside have no content, and the engine works in pieces and with copies as on ``device``.

    They claim to lie on the CPU, whose kernels keep the same tensors for the backward pass; PyTorch knows those of
    a GPU only where it was built for one.
    """
    tables: tuple[dict[str, Any], ...] = (CHUNK_BYTES, WIDE_RESULTS)
    exchange = nn.Module._apply
    before = [table["cpu"] for table in tables]
    for table in tables:
        table["cpu"] = table[device]
    nn.Module._apply = _replace_weights  # type: ignore[method-assign]
    grouped = getattr(nn.functional, "grouped_mm", None)  # None before PyTorch 2.10
    log = logging.getLogger("torch._subclasses.fake_tensor")  # writes down what fails, which is caught here
    was_off, log.disabled = log.disabled, True
    if grouped is not None:
        nn.functional.grouped_mm = _grouped_mm  # type: ignore[assignment]
    try:
        with FakeTensorMode() as mode:
            yield mode
    finally:
        log.disabled = was_off
        nn.Module._apply = exchange  # type: ignore[method-assign]
        if grouped is not None:
            nn.functional.grouped_mm = grouped
        for table, value in zip(tables, before, strict=True):
            table["cpu"] = value


def _grouped_mm(rows: Tensor, weights: Tensor, *, offs: Tensor | None = None, **options: Any) -> Tensor:
    """``torch.nn.functional.grouped_mm``, by which experts multiply: without content PyTorch has it in bfloat16 alone.

    The kernel takes any dtype. Every row goes through one expert, whichever it is: as a product with the first
    expert's matrix, of which all are kept for the backward pass and get a gradient.
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


def _replace_weights(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What ``Module.to`` and its like do, by new parameters: PyTorch cannot change those without content in place."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, old in module._parameters.items():
        if old is not None and (new := function(old.detach())).dtype != old.dtype:
            module._parameters[name] = nn.Parameter(new, requires_grad=old.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else function(buffer)
    return module


def without_content(batch: PairBatch, mode: FakeTensorMode) -> PairBatch:
    """The shapes of a batch."""
    items: dict[str, Any] = {n: mode.from_tensor(v) if isinstance(v, Tensor) else v for n, v in vars(batch).items()}
    return PairBatch(**items)


def takes_packed(model: PreTrainedModel, mode: FakeTensorMode) -> bool:
    """Whether the model can be run over packed rows; True where that is not known without content."""
    pair = TokenizedPair([1], [1], [1], None, None, 0, "")

    def runs(layout: Layout) -> bool:
        with unset_fake_temporarily():  # a batch is made of numbers
            batch = collate([pair], 0, layout=layout)
        try:
            with torch.no_grad():
                SkeletonEngine(model)(without_content(batch, mode))
        except Unknowable:
            return True
        except Exception:
            return False
        return True

    use_packed_attention(model)
    return runs("packed") or not runs("padded")  # one that fails at both has to do with tensors without content


def made_of(source: ModelSource) -> PreTrainedModel:
    """The model that ``source`` describes; see :func:`skeleton_without_content`."""
    return skeleton_without_content(source.skeleton, source.identity)


def skeleton_without_content(
    make: Callable[[], PreTrainedModel], name: Callable[[], str], key: str = "model"
) -> PreTrainedModel:
    """A model made of fake tensors.

    Args:
        make: it, by its configuration alone.
        name: what it is called in an error, asked for then alone.
        key: of that.

    Raises:
        CaldpoError: naming ``key``: its code needs numbers to make it.
    """
    try:
        return make()
    except CaldpoError:
        raise
    except Exception:  # the meta device lets more pass
        return _made_on_meta(make, name, key)


def _made_on_meta(make: Callable[[], PreTrainedModel], name: Callable[[], str], key: str) -> PreTrainedModel:
    try:
        with unset_fake_temporarily(), torch.device("meta"):
            model = make()
    except Exception as error:
        raise CaldpoError(
            "this model cannot be made on tensors without content, so that nothing is known of its memory"
            f" ({one_line(error)})",
            key=key,
            value=name(),
            remedy="start the run itself with trainer.max_steps=1",
        ) from error
    made: dict[int, Tensor] = {}  # tied weights stay tied
    for module in model.modules():
        for attribute, old in [*module._parameters.items(), *module._buffers.items()]:
            if old is None:
                continue
            if id(old) not in made:
                empty = torch.empty(old.shape, dtype=old.dtype)
                is_weight = isinstance(old, nn.Parameter)
                made[id(old)] = nn.Parameter(empty, requires_grad=old.requires_grad) if is_weight else empty
            setattr(module, attribute, made[id(old)])
    return model


def converted(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model with its floating-point weights in another dtype; as it is for None."""
    if dtype is None:
        return model
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(old) not in made:
                made[id(old)] = nn.Parameter(old.detach().to(dtype), requires_grad=old.requires_grad)
            setattr(module, name, made[id(old)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))
    return model


def training_step(
    policy: PreTrainedModel,
    batch: PairBatch,
    *,
    precision: str,
    reference: PreTrainedModel | None,
    accumulates: bool,
    logits_cache_mib: int = LOGITS_CACHE_MIB,
) -> StepMemory:
    """Go through forward and backward of one micro-batch, real or without content.

    The gradients of the step before are there until the backward pass begins, as in Lightning; with ``accumulates``
    those of the micro-batches before stay.

    Args:
        policy: in training mode, converted for the precision.
        batch: the micro-batch.
        precision: Lightning's name.
        reference: a model that is asked before the policy, without gradient; None where none is.
        accumulates: whether a step has several micro-batches.
        logits_cache_mib: of the engine.

    Raises:
        Unknowable: (one of them) the model looks into its tensors.
    """
    trained = [p for p in policy.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    engine = SkeletonEngine(policy, logits_cache_mib)
    with LiveBytes(policy, policy.config.vocab_size) as live:
        if reference is not None:
            live.add([*reference.parameters(), *reference.buffers()], WEIGHTS)
        fixed = live.total
        with autocast(precision):
            if reference is not None:
                with torch.no_grad():
                    SkeletonEngine(reference)(batch)
            objective, _, _ = engine.loss(batch, lambda chosen, rejected, _: (chosen - rejected).sum())
        kept = live.live[OTHER]
        if not accumulates:
            for parameter in trained:
                parameter.grad = None
        objective.backward()
    casts, head = live.largest[CASTS], live.largest[HEAD]
    working = max(0, live.peak - fixed - casts - kept - head)
    return StepMemory(casts, kept, head, working)


def evaluation_step(model: PreTrainedModel, batch: PairBatch, precision: str) -> int:
    """Bytes that a forward pass without gradients takes beyond the weights."""
    with LiveBytes(model, model.config.vocab_size) as live, torch.no_grad(), autocast(precision):
        fixed = live.total
        SkeletonEngine(model)(batch)
    return live.peak - fixed


def autocast(precision: str) -> Any:
    """The arithmetic of a precision."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, shared storages counted once."""
    live = LiveBytes()
    live.add(tensors, WEIGHTS)
    return live.total
