"""Standard output that may close without ending the run."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

# of a terminal that is closed, of a reader that has left, and of a stream that was closed on purpose
_GONE = (errno.EIO, errno.EPIPE, errno.EBADF)
_NOTE = b"\nnote: the output stream is closed: the run goes on and writes to its folder alone\n"


class ResilientStream:
    """Wrap a text stream; write nowhere once its reader is gone.

    A terminal is gone after a logout, a pipe when the program at its other end has ended. Neither is a reason to lose a
    run, which keeps all that it finds in files. A disk without room is another matter, and an error as ever.

    Args:
        stream: gets the text; None, as Python makes of a descriptor that is closed, is a stream that is gone already.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: TextIO = stream or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115, of the process

    def write(self, text: str) -> int:
        self._ignoring_closed(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._ignoring_closed(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _ignoring_closed(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._write_nowhere()

    def _write_nowhere(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is buffered goes there, too
            os.close(nowhere)
        with contextlib.suppress(OSError):
            os.write(2, _NOTE)
