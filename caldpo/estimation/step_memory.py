"""Memory of a training step, by running one on fake tensors and counting live bytes.

Model code, log-prob engine, autocast, gradient checkpointing and backward pass are those of the run, so whatever an
architecture keeps for its backward pass is counted without formulas.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel

from caldpo.estimation.fake_model import FakeLogprobEngine
from caldpo.logprobs import LOGITS_CACHE_MIB
from caldpo.types import PairBatch
from caldpo.utils.heap import MAPPED_BYTES

WEIGHT_DTYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
"""Precisions in which Lightning converts the policy's weights."""
AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precisions in which weights keep their dtype and products have another one."""

WEIGHTS, GRADIENTS, CASTS, HEAD, OTHER = "weights", "gradients", "casts", "head", "other"
"""Kinds of storage: ``casts`` are copies of weights in another dtype, ``head`` has the vocabulary as its last dimension
(logits and what is computed from them), ``other`` is every other result."""


class LiveBytes(TorchDispatchMode):
    """Count the bytes of every storage that an operation makes, from its allocation to its release.

    Works for real and for fake tensors. A storage counts once, however many views it has. Buffers that a kernel
    allocates and frees within one operation are not seen.

    Args:
        model: whose weights and present gradients count from the start.
        vocab_size: last dimension that marks a tensor of the output head; None marks none.
    """

    def __init__(self, model: torch.nn.Module | None = None, vocab_size: int | None = None) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.live: Counter[str] = Counter()  # bytes by kind
        self.largest: Counter[str] = Counter()  # peak of each kind
        self.peak = 0  # of all kinds together
        self.from_heap = 0  # of all storages so far, released ones too, that are too small to be mapped one by one
        self._seen: dict[int, tuple[weakref.ref[Any], str]] = {}
        if model is not None:
            self.add([*model.parameters(), *model.buffers()], WEIGHTS)
            self.add((p.grad for p in model.parameters() if p.grad is not None), GRADIENTS)

    @property
    def total(self) -> int:
        """Live bytes of all kinds."""
        return sum(self.live.values())

    def add(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count the storages of ``tensors`` that are not counted yet."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key in self._seen or not size:
                continue
            # the storage's Python object lives as long as the storage
            released = weakref.ref(storage, lambda _, k=key, s=size: self._release(k, s))  # type: ignore[misc]
            self._seen[key] = released, kind
            self.live[kind] += size
            self.from_heap += size if size < MAPPED_BYTES else 0
            self.largest[kind] = max(self.largest[kind], self.live[kind])
            self.peak = max(self.peak, self.total)

    def _release(self, key: int, size: int) -> None:
        _, kind = self._seen.pop(key)
        self.live[kind] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.add([tensor], self._kind(func, tensor, args))
        return out

    def _kind(self, func: object, result: Tensor, args: tuple[Any, ...]) -> str:
        if func is torch.ops.aten._to_copy.default:
            _, source = self._seen.get(id(args[0].untyped_storage()), (None, OTHER))
            if source in (WEIGHTS, CASTS):
                return CASTS
        if self.vocab_size and result.ndim > 1 and result.shape[-1] == self.vocab_size:
            return HEAD
        return OTHER


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Sum the bytes of tensors, shared storages once."""
    live = LiveBytes()
    live.add(tensors, WEIGHTS)
    return live.total


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of one micro-batch beyond weights, gradients, optimiser state and reference."""

    casts: int  # copies of weights in the dtype of the products: of all weights under autocast, else of the head
    activations: int  # what the backward pass needs from the forward pass
    head: int  # peak of the logits and the gradient of the output head
    working: int  # what the peak adds to all these
    from_heap: int = 0  # allocated over the whole micro-batch from a CPU's heap

    @property
    def total(self) -> int:
        """Sum of the four."""
        return self.casts + self.activations + self.head + self.working


def training_step(
    policy: PreTrainedModel,
    batch: PairBatch,
    *,
    precision: str,
    reference: PreTrainedModel | None,
    accumulates: bool,
    logits_cache_mib: int = LOGITS_CACHE_MIB,
) -> StepMemory:
    """Run forward and backward pass of one micro-batch, real or fake, and measure its memory.

    Gradients, which are a part of their own, count from the start; with ``accumulates`` those of the previous
    micro-batches stay beside the new ones.

    Args:
        policy: in training mode, in the dtype of its weights.
        batch: the micro-batch.
        precision: Lightning's name.
        reference: a model that runs before the policy, without gradients, if any.
        accumulates: whether a step has several micro-batches.
        logits_cache_mib: of the log-prob engine.

    Raises:
        Exception: the model depends on the values of fake tensors.
    """
    trained = [p for p in policy.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    engine = FakeLogprobEngine(policy, logits_cache_mib)
    with LiveBytes(policy, policy.config.vocab_size) as live:
        if reference is not None:
            live.add([*reference.parameters(), *reference.buffers()], WEIGHTS)
        fixed, before = live.total, live.from_heap
        with autocast(precision):
            if reference is not None:
                with torch.no_grad():
                    FakeLogprobEngine(reference)(batch)
            objective, _, _ = engine.loss(batch, lambda chosen, rejected, _: (chosen - rejected).sum())
        activations = live.live[OTHER]
        if not accumulates:
            for parameter in trained:
                parameter.grad = None
        objective.backward()
    casts, head = live.largest[CASTS], live.largest[HEAD]
    working = max(0, live.peak - fixed - casts - activations - head)
    return StepMemory(casts, activations, head, working, live.from_heap - before)


def evaluation_step(model: PreTrainedModel, batch: PairBatch, precision: str) -> int:
    """Measure the bytes that a forward pass without gradients takes beyond the weights."""
    with LiveBytes(model, model.config.vocab_size) as live, torch.no_grad(), autocast(precision):
        fixed = live.total
        FakeLogprobEngine(model)(batch)
    return live.peak - fixed


def autocast(precision: str) -> AbstractContextManager[object]:
    """Open the autocast context of a precision; an empty one where it needs none."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
