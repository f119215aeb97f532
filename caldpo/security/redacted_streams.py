"""Mask secrets in logs, output and the environment of child processes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from typing import Any, TextIO

from caldpo.security.secrets import is_secret_name, redact_text
from caldpo.security.wrapped_secrets import mask_wrapped
from caldpo.utils.resilient_stream import ResilientStream

# Gated models and data need it; a process that is to have them is handed these by name.
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class RedactedFormatter(logging.Formatter):
    """Format log records as :class:`logging.Formatter`, traceback included, with secrets masked."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_text(super().format(record))


class UnlinkedLogHandler(logging.FileHandler):
    """Open a log file, but never through a link: it may be opened before the run's folder has been checked.

    What is logged then goes nowhere. It would be refused right after, with the link named, if it leads out.
    """

    def _open(self) -> TextIOWrapper:
        try:
            return self._opened(self.baseFilename)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        return self._opened(os.devnull)

    def _opened(self, path: str) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(path, flags, 0o666), "a", encoding=self.encoding, errors=self.errors)


class RedactedStream:
    """Wrap a text stream; mask secrets in what is written to it, one call at a time.

    Also those that a table's column or a terminal's width has folded.

    Args:
        stream: gets the text.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact_text(mask_wrapped(text)))  # a first half may have a form of its own
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def redacted_output(*, outlived: bool = False) -> Iterator[None]:
    """Mask secrets in what this process prints within the context: terminals are kept in files, too.

    Hydra's console handlers are made of the streams as they are then, so they are covered when they are made within.

    Args:
        outlived: go on where whoever reads the output has gone.
    """

    def stream(own: Any) -> RedactedStream:
        return RedactedStream(ResilientStream(own) if outlived else own)  # type: ignore[arg-type]

    with contextlib.ExitStack() as stack:
        if not isinstance(sys.stdout, RedactedStream):
            stack.enter_context(contextlib.redirect_stdout(stream(sys.stdout)))
        if not isinstance(sys.stderr, RedactedStream):
            stack.enter_context(contextlib.redirect_stderr(stream(sys.stderr)))
        yield


def environment_without_secrets(*keep: str) -> dict[str, str]:
    """Copy the environment without the variables that sound like secrets, for a child process.

    Args:
        keep: names of secret ones that it does need.
    """
    return {name: value for name, value in os.environ.items() if name in keep or not is_secret_name(name)}
