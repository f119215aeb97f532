"""What the harness does to the process it runs in, undone; and what it says, heard."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_CUT = "truncat"  # in every message of the harness about a prompt that did not fit


class Cuts(logging.Handler):
    """Counts the harness's warnings of prompts that were longer than the model's context."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += _CUT in record.getMessage().lower()


def cuts_in(log: str) -> int:
    """The same of what the command line wrote."""
    return sum(_CUT in line.lower() for line in log.splitlines())


@contextmanager
def listening() -> Iterator[Cuts]:
    """The harness's warnings are counted instead of printed; progress bars are shown on a terminal alone."""
    logger, cuts = logging.getLogger("lm_eval"), Cuts()
    before = logger.level, logger.propagate, logger.handlers
    logger.handlers, logger.propagate = [cuts], False
    logger.setLevel(logging.WARNING)
    shown = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with shown:
            yield cuts
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]


@contextmanager
def same_generators(device: torch.device) -> Iterator[None]:
    """The harness seeds Python's, numpy's and torch's global generators; afterwards they go on as if it had not."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
