"""Receive signals that ask a training run to stop; all ranks act on them together, between two micro-batches."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

from caldpo.utils.collectives import max_over_ranks

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # Slurm announces the end of its time with SIGUSR1
HANGUP = signal.SIGHUP  # the terminal was closed, or its connection lost; nohup ignores it, and then so does the run
REQUEUING = signal.SIGUSR2  # of launchers that handle it themselves: submitit queues the job again


class StopSignals:
    """Keep the first signal that asks for a stop; a Ctrl-C after it quits at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._earlier: dict[int, Any] = {}  # handlers, by signal
        self._terminals: list[int] = []

    def watch(self) -> None:
        """Install the handlers; does nothing outside the main thread, which alone can."""
        if threading.current_thread() is not threading.main_thread():
            return
        optional = [REQUEUING] if callable(signal.getsignal(REQUEUING)) else []
        if signal.getsignal(HANGUP) != signal.SIG_IGN:
            optional.append(HANGUP)
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        for number in (*STOPPING, *optional):
            self._earlier.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._receive)

    def release(self) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def pass_on(self, number: int) -> None:
        """Run a launcher's own handler of this signal, now that the run is saved."""
        handler = self._earlier.get(number)
        self.release()
        if number == REQUEUING and callable(handler):
            handler(number, None)

    def asked(self) -> int | None:
        """Return the signal that any rank has received, the same on all ranks, which all have to ask."""
        return max_over_ranks(self.received)

    def _receive(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise SystemExit(128 + number)  # Lightning would make code 1 of a KeyboardInterrupt
        if number == HANGUP:
            self._redirect_terminals()
        if self.received is None:
            self.received = number
            again = "Ctrl-C again quits" if number == signal.SIGINT else "Ctrl-C quits"
            message = f"\n{signal.Signals(number).name}: saving after this micro-batch; {again} at once\n"
            with contextlib.suppress(OSError):
                os.write(2, message.encode())  # print and rich take locks that the interrupted code may hold

    def _redirect_terminals(self) -> None:
        """Redirect output to /dev/null: writing to a closed terminal would raise, in the midst of saving."""
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in self._terminals:
            os.dup2(null, stream)
        os.close(null)
