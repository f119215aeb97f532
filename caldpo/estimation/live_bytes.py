"""Counts the bytes of tensors while they are alive: real ones and fake ones alike, on any device."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

WEIGHTS, GRADIENTS, CASTS, HEAD, OTHER = "weights", "gradients", "casts", "head", "other"
"""Kinds of storage: ``casts`` are copies of weights in another precision, ``head`` has the vocabulary as its last
dimension (logits, and what becomes of them), ``other`` is everything else that operations make."""


class LiveBytes(TorchDispatchMode):
    """While it is entered, every storage that an operation makes is counted until it is freed.

    A storage counts once, however many views it has, as memory does. What a kernel takes and gives back within
    one operation is not seen.

    Args:
        model: its weights and present gradients are counted from the start.
        vocabulary: size that marks a tensor of the output head; None marks none.
    """

    def __init__(self, model: torch.nn.Module | None = None, vocabulary: int | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.live: Counter[str] = Counter()
        self.largest: Counter[str] = Counter()  # of each kind, at any moment
        self.peak = 0  # of all kinds together
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._kinds: dict[int, str] = {}
        if model is not None:
            self.add([*model.parameters(), *model.buffers()], WEIGHTS)
            self.add((p.grad for p in model.parameters() if p.grad is not None), GRADIENTS)

    @property
    def total(self) -> int:
        """Bytes alive now."""
        return sum(self.live.values())

    def add(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count the storages of ``tensors`` that are not counted yet."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key in self._seen or not size:
                continue
            # the object of a storage lives as long as the storage does
            self._seen[key] = weakref.ref(storage, lambda _, k=key, s=size: self._freed(k, s))  # type: ignore[misc]
            self._kinds[key] = kind
            self.live[kind] += size
            self.largest[kind] = max(self.largest[kind], self.live[kind])
            self.peak = max(self.peak, self.total)

    def _freed(self, key: int, size: int) -> None:
        del self._seen[key]
        self.live[self._kinds.pop(key)] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.add([tensor], self._kind(func, tensor, args))
        return out

    def _kind(self, func: Any, made: Tensor, args: tuple[Any, ...]) -> str:
        if func is torch.ops.aten._to_copy.default:
            source = self._kinds.get(id(args[0].untyped_storage()))
            if source in (WEIGHTS, CASTS):
                return CASTS
        if self.vocabulary and made.ndim > 1 and made.shape[-1] == self.vocabulary:
            return HEAD
        return OTHER
