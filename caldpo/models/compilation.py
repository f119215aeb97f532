"""Compile norms and feed-forward blocks by ``torch.compile`` (``trainer.compile=true``), and time it.

The attention is not compiled. Its kernels are fused already, and packed pairs have other lengths in every batch, which
enter it as plain numbers: it would be recompiled for each kind of batch.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch._dynamo.callback import CallbackArgs, callback_handler
from transformers.modeling_layers import GradientCheckpointingLayer

from caldpo.errors import CaldpoError
from caldpo.utils.stream_console import Console


def compile_layers(policy: nn.Module) -> list[nn.Module]:
    """Compile all parts of each decoder layer but its attention, in place, for any length; return the parts.

    Layers share their code, so that each kind of part is compiled once for all of them. The modules stay the same
    objects: no name in a checkpoint or an export changes.
    """
    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
    parts = [part for layer in layers for part in layer.children() if "attention" not in type(part).__name__.lower()]
    if not parts:
        raise CaldpoError(
            f"{type(policy).__name__} has no decoder layers to compile",
            key="trainer.compile",
            value="true",
            remedy="set trainer.compile=false",
        )
    for part in parts:
        part.compile(dynamic=True)
    return parts


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled parts eagerly while active: generation has another shape at every token, and would compile each."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class CompileClock:
    """Measures the seconds that ``torch.compile`` takes in this process, from :meth:`start` to :meth:`stop`."""

    def __init__(self) -> None:
        self.seconds, self.count, self._started = 0.0, 0, 0.0

    def start(self) -> None:
        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)

    def stop(self) -> None:
        if self._begin in callback_handler.start_callbacks:  # also after a reset of the compiler, which forgets it
            callback_handler.remove_start_callback(self._begin)
            callback_handler.remove_end_callback(self._end)

    def _begin(self, _: CallbackArgs) -> None:
        self._started = time.perf_counter()

    def _end(self, _: CallbackArgs) -> None:
        self.seconds += time.perf_counter() - self._started
        self.count += 1


class CompiledLayers(pl.Callback):
    """Compiles the policy's layers and prints the time: after the first step, and at the end if there was more."""

    def __init__(self) -> None:
        self.clock = CompileClock()
        self.parts: list[nn.Module] = []
        self._printed_seconds = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if not self.parts:
            self.parts = compile_layers(pl_module.policy)
        self.clock.start()

    def on_train_batch_end(self, *_: Any) -> None:
        if not self._printed_seconds:
            self._print_time()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.clock.seconds > self._printed_seconds:
            self._print_time()

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.clock.stop()

    def _print_time(self) -> None:
        self._printed_seconds = self.clock.seconds
        seconds, count = self.clock.seconds, self.clock.count
        Console().print(f"torch.compile: compiled in {seconds:.1f} s ({count} graphs for {len(self.parts)} parts)")
