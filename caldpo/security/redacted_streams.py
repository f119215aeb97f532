"""Output of a run: secrets masked, also in logs and the environment of child processes, and readers that may leave."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from caldpo.security.secrets import KNOWN_FORMS, is_secret_name, known_secrets, redact_text

# Gated models and data need it; a process that is to have them is handed these by name.
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

# how a terminal's layout cuts a text in two: wrapped or cropped at a column's width, or coloured
_COLOURS = r"\x1b\[[0-9;?]*[A-Za-z]"
_FRAME = r"[ \t\r│┃║|]"
_ELLIPSIS = "…"
_SHORTEST_START = 6  # characters of a secret before an ellipsis
_LAYOUT = re.compile(rf"{_COLOURS}|{_FRAME}+|\n+")
# the end of one line with the start of the next, but no space between two words of a line
_WRAP = re.compile(rf"(?:{_COLOURS}|{_FRAME})*\n(?:{_COLOURS}|{_FRAME}|\n)*|{_COLOURS}")


# of a terminal that is closed, of a reader that has left, and of a stream that was closed on purpose
_GONE = (errno.EIO, errno.EPIPE, errno.EBADF)
_NOTE = b"\nnote: the output stream is closed: the run goes on and writes to its folder alone\n"


class RedactedFormatter(logging.Formatter):
    """Format log records as :class:`logging.Formatter`, traceback included, with secrets masked."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_text(super().format(record))


class UnlinkedLogHandler(logging.FileHandler):
    """Open a log file, but never through a link: it may be opened before the run's folder has been checked.

    What is logged then goes nowhere. It would be refused right after, with the link named, if it leads out.
    """

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            handle = os.open(self.baseFilename, flags, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            handle = os.open(os.devnull, flags)
        return os.fdopen(handle, "a", encoding=self.encoding, errors=self.errors)


class RedactedStream:
    """Wrap a text stream; mask secrets in what is written to it, one call at a time, also where layout has cut them."""

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


class ResilientStream:
    """Wrap a text stream; write nowhere once its reader is gone.

    A terminal is gone after a logout, a pipe when the program at its other end has ended, and None is what Python makes
    of a descriptor that is closed. None of that is a reason to lose a run, which keeps all that it finds in files. A
    disk without room is another matter, and an error as ever.
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


@contextlib.contextmanager
def redacted_output(*, outlived: bool = False) -> Iterator[None]:
    """Mask secrets in what this process prints within the context: terminals are kept in files, too.

    Hydra's console handlers are made of the streams as they are then, so they are covered when they are made within.
    An ``outlived`` output may lose its reader.
    """

    with contextlib.ExitStack() as stack:
        for stream, redirect in (
            (sys.stdout, contextlib.redirect_stdout),
            (sys.stderr, contextlib.redirect_stderr),
        ):
            if not isinstance(stream, RedactedStream):
                lasting: Any = ResilientStream(stream) if outlived else stream
                stack.enter_context(redirect(RedactedStream(lasting)))
        yield


def environment_without_secrets(*keep: str) -> dict[str, str]:
    """Copy the environment for a child process, without variables that sound like secrets but those to ``keep``."""
    return {name: value for name, value in os.environ.items() if name in keep or not is_secret_name(name)}


def mask_wrapped(text: str) -> str:
    """Replace each character of a secret that layout has cut by ``*``, so that tables keep their form.

    What is in one piece is left to :func:`caldpo.security.secrets.redact_text`. No other cell of a table may stand
    between the halves: the last column is the one for texts of any length.
    """
    if "\n" not in text.rstrip("\n") and "\x1b" not in text and _ELLIPSIS not in text:
        return text
    chars = list(text)
    for place in _cut(text):
        chars[place] = "*"
    return "".join(chars)


def _cut(text: str) -> Iterator[int]:
    """Yield the positions of the characters of all secrets that do not stand in one piece."""
    secrets = known_secrets()
    # A line breaks where a space was, so secrets with spaces are looked for without.
    joined, places = _without(_LAYOUT, text)
    for secret in secrets:
        unwrapped = _LAYOUT.sub("", secret)
        for match in re.finditer(re.escape(unwrapped), joined) if unwrapped else ():
            yield from _if_cut(text, places[match.start() : match.end()])
        for end in (place for place, char in enumerate(joined) if char == _ELLIPSIS):
            longest = range(len(unwrapped), _SHORTEST_START - 1, -1)
            length = next((n for n in longest if joined.endswith(unwrapped[:n], 0, end)), 0)
            yield from places[end - length : end]
    joined, places = _without(_WRAP, text)
    for match in KNOWN_FORMS.finditer(joined):
        yield from _if_cut(text, places[match.start() : match.end()])


def _if_cut(text: str, positions: list[int]) -> list[int]:
    """Keep positions that a line's end or a colour separates; else they are words of one line alone."""
    between = text[positions[0] : positions[-1]]
    return positions if "\n" in between or "\x1b" in between else []


def _without(what: re.Pattern[str], text: str) -> tuple[str, list[int]]:
    """Remove a pattern; return the rest with the original position of each character."""
    places: list[int] = []
    end = 0
    for match in what.finditer(text):
        places += range(end, match.start())
        end = match.end()
    places += range(end, len(text))
    return "".join(text[place] for place in places), places
