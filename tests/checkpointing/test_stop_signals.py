"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from caldpo.checkpointing.stop_signals import HANGUP, StopSignals


@pytest.fixture
def hangup() -> Iterator[None]:
    before = signal.getsignal(HANGUP)
    yield
    signal.signal(HANGUP, before)


@pytest.mark.usefixtures("hangup")
def test_a_hangup_asks_for_a_stop_except_under_nohup() -> None:
    for handler, heard in ((signal.SIG_DFL, HANGUP), (signal.SIG_IGN, None)):
        signal.signal(HANGUP, handler)
        signals = StopSignals()
        signals.watch()
        try:
            signal.raise_signal(HANGUP)
        finally:
            signals.release()
        assert signals.received == heard
        assert signal.getsignal(HANGUP) == handler, "given back"


@pytest.mark.usefixtures("hangup")
def test_writing_to_a_closed_terminal_is_no_error() -> None:
    signal.signal(HANGUP, signal.SIG_DFL)
    terminal, side = os.openpty()
    kept = [os.dup(stream) for stream in (1, 2)]
    signals = StopSignals()
    try:
        for stream in (1, 2):
            os.dup2(side, stream)
        signals.watch()
        os.close(terminal)
        signal.raise_signal(HANGUP)
        os.write(1, b"saved\n")
    finally:
        signals.release()
        for stream, own in zip((1, 2), kept, strict=True):
            os.dup2(own, stream)
            os.close(own)
        os.close(side)
