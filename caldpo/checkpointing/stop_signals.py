"""Signals that ask a training run to stop: noticed at once, heeded between two micro-batches, by all ranks together."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

from caldpo.utils.collectives import max_over_ranks

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # SIGUSR1 is what Slurm gives notice with
HANGUP = (
    signal.SIGHUP
)  # the terminal is gone, of a connection that was lost; nohup ignores it, and then so does the run
REQUEUING = signal.SIGUSR2  # of launchers that listen to it themselves: submitit queues the job again


class StopSignals:
    """Remembers the first signal that asks for a stop. A Ctrl-C that follows it is not waited for."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []

    def watch(self) -> None:
        """Begin to listen, in place of whoever does; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        theirs = [REQUEUING] if callable(signal.getsignal(REQUEUING)) else []
        if signal.getsignal(HANGUP) != signal.SIG_IGN:
            theirs.append(HANGUP)
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        for number in (*STOPPING, *theirs):
            self._before.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._note)

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def pass_on(self, number: int) -> None:
        """Let a launcher that listens for this signal do what it does on it, now that the run is saved."""
        handler = self._before.get(number)
        self.release()
        if number == REQUEUING and callable(handler):
            handler(number, None)

    def asked(self) -> int | None:
        """The signal that any rank has received; the same answer on all ranks, which all have to ask."""
        return max_over_ranks(self.received)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise SystemExit(128 + number)  # Lightning would make code 1 of a KeyboardInterrupt
        if number == HANGUP:
            self._write_nowhere()
        if self.received is None:
            self.received = number
            again = "Ctrl-C again quits" if number == signal.SIGINT else "Ctrl-C quits"
            said = f"\n{signal.Signals(number).name}: saving after this micro-batch; {again} at once\n"
            with contextlib.suppress(OSError):
                os.write(2, said.encode())  # print and rich take locks that the interrupted code may hold

    def _write_nowhere(self) -> None:
        """Send to nowhere what a terminal that is gone would answer with an error, in the midst of saving."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in self._terminals:
            os.dup2(nowhere, stream)
        os.close(nowhere)
