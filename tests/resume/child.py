"""A training run in a process of its own, which kills or signals itself at a chosen event.

Imported by the server that forks these processes, so that each starts within milliseconds.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import caldpo.train
import caldpo.training_run
from caldpo.callbacks.sample_table import SampleTable
from caldpo.callbacks.true_reward import OracleEvaluation
from caldpo.checkpointing import checkpoint_io
from caldpo.lightning_module import PreferenceModule
from caldpo.metrics_file import RowWriter
from tests.helpers.forked import take_over


@dataclass(frozen=True)
class Kill:
    """What a process does to itself: at the ``count``-th ``event``, send itself ``number``.

    Events: ``step`` (a micro-batch is about to be computed), ``update`` (gradients are there, weights not yet changed),
    ``evaluation`` (a batch of held-out pairs), ``samples`` (between an evaluation and its samples), ``row`` (half of a
    row of metrics is written), ``tensors`` (a checkpoint's weights are written, the rest is not), ``manifest`` (all but
    its manifest), ``rename`` (complete, but without its name), ``oracle``, ``export``;
    ``clock``: after ``count`` milliseconds, wherever that is. ``quota``: from the ``count``-th checkpoint on no file
    may become larger than ``number`` bytes. ``fail``: the ``count``-th micro-batch raises an error.
    """

    event: str
    count: int
    number: int


def run(
    arguments: list[str],
    folder: str,
    output: str,
    environment: dict[str, str],
    kill: Kill | None,
    command: str = "caldpo.train",
) -> None:
    """Run a command (the module that holds its ``main``) in ``folder``; everything said goes to the file ``output``."""
    take_over(os.environ | environment, folder)
    with Path(output).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [command.rpartition(".")[2], *arguments]
    if kill is not None:
        os.setpgid(0, 0)  # a group of its own, that a signal to it reaches nobody else
        _arm(kill)
    importlib.import_module(command).main(arguments)


def _arm(kill: Kill) -> None:
    seen = 0

    def strike() -> None:
        nonlocal seen
        seen += 1
        if seen == kill.count:
            for _ in range(2 if kill.event.endswith(" twice") else 1):
                if kill.event.endswith(" group"):
                    os.killpg(0, kill.number)
                else:
                    os.kill(os.getpid(), kill.number)

    def before(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            strike()
            return original(*args, **kwargs)

        setattr(owner, name, patched)

    match kill.event.removesuffix(" twice").removesuffix(" group"):
        case "step":
            before(PreferenceModule, "training_step")
        case "update":
            before(PreferenceModule, "configure_gradient_clipping")
        case "evaluation":
            before(PreferenceModule, "validation_step")
        case "samples":
            before(SampleTable, "on_validation_epoch_end")
        case "oracle":
            before(OracleEvaluation, "on_trained")
        case "tensors":
            before(checkpoint_io, "write_training")
        case "manifest":
            before(checkpoint_io, "describe_files")
        case "rename":
            before(checkpoint_io.Manifest, "write")
        case "export":
            before(caldpo.training_run, "export_policy")
        case "fail":
            _fail(kill.count)
        case "quota":
            _limit_files(kill)
        case "clock":
            timer = threading.Timer(kill.count / 1000, os.kill, (os.getpid(), kill.number))
            timer.daemon = True
            timer.start()
        case "row":
            _tear_a_row(strike, kill)
        case _:
            raise ValueError(kill.event)


def _fail(count: int) -> None:
    original, seen = PreferenceModule.training_step, 0

    def training_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == count:
            raise RuntimeError("made to fail")
        return original(*args, **kwargs)

    PreferenceModule.training_step = training_step  # type: ignore[method-assign]


def _limit_files(kill: Kill) -> None:
    seen, original = 0, checkpoint_io.write_training

    def write(*args: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == kill.count:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (kill.number, kill.number))
        original(*args)

    checkpoint_io.write_training = write


def _tear_a_row(strike: Callable[[], None], kill: Kill) -> None:
    original = RowWriter.write

    def torn(self: RowWriter, metrics: Any, step: int) -> None:
        before = self.path.read_bytes() if self.path.exists() else b""
        original(self, metrics, step)
        after = self.path.read_bytes()
        if kill.number == signal.SIGKILL and after.startswith(before):
            self.path.write_bytes(after[: len(before) + (len(after) - len(before)) // 2])
        strike()
        self.path.write_bytes(after)

    RowWriter.write = torn  # type: ignore[method-assign]
