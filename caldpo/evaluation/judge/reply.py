"""A judge's reply: bounded in bytes and time while it arrives, and read as what it has to be, a chat completion."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 8 * 2**20
"""Of a reply's body: far beyond a verdict, and what a model that thinks aloud writes."""
_SHOWN = 300  # characters of a reply that is no chat completion
_MOST_TOKENS = 2**53  # that a count is believed to be


class NoCompletion(Exception):  # noqa: N818 - an answer of its own kind
    """The endpoint answered, and the answer is no chat completion."""


class BadBody(Exception):  # noqa: N818
    """A reply's body is larger, slower or otherwise written than any chat completion."""


@dataclass(frozen=True)
class Reply:
    """What is used of a chat completion.

    Args:
        content: the first choice's text; empty where the judge said nothing.
        finish: why it stopped (``stop``, ``length``, ...), where the endpoint says so.
        prompt_tokens: read by the judge; None where the endpoint does not count.
        completion_tokens: written by it; likewise.
    """

    content: str
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


def read_reply(body: bytes) -> Reply:
    """The chat completion in a reply's body.

    Raises:
        NoCompletion: it is something else; says what.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise NoCompletion(_start(body)) from None
    try:
        choice = said["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise NoCompletion(_start(body)) from None
    if content is not None and not isinstance(content, str):
        raise NoCompletion(f"the content of its message is no text: {_start(body)}")
    usage = said.get("usage")
    return Reply(
        content=content or "",
        finish=finish if isinstance(finish, str) else None,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def bounded_hooks(timeout: float) -> dict[str, list[Any]]:
    """Event hooks of an HTTP client that bound each attempt: its body to :data:`MOST_BYTES`, all of it to ``timeout``.

    A time-out of the client alone is one of each wait for the next bytes, which may go on for ever.

    Args:
        timeout: seconds, from the sending of the question to the last byte of the answer.
    """

    def started(request: Any) -> None:
        request.extensions = {**request.extensions, "caldpo_started": time.monotonic()}

    def bound(response: Any) -> None:
        began = response.request.extensions.get("caldpo_started", time.monotonic())
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() not in ("", "identity"):
            raise BadBody(f"it is compressed ({encoding}), which was not asked for")
        response.stream = _bounded(response.stream, began + timeout, timeout)

    return {"request": [started], "response": [bound]}


def _bounded(stream: Any, deadline: float, timeout: float) -> Any:
    """A stream that ends with an error where it takes too long or is too much; of the same kind as the one given."""
    # the base that the client looks for: of httpx, or of httpx2 from openai 3 on
    base: Any = next(kind for kind in type(stream).__mro__ if kind.__name__ == "SyncByteStream")

    class Bounded(base):
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in stream:
                size += len(chunk)
                if size > MOST_BYTES:
                    raise BadBody(f"it has more than {MOST_BYTES:,} bytes")
                if time.monotonic() > deadline:
                    raise BadBody(f"it is not complete after {timeout:g} seconds (judge.timeout)")
                yield chunk

        def close(self) -> None:
            stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(stream, name)

    return Bounded()


def _count(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, Mapping) else None
    known = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < _MOST_TOKENS
    return int(count) if known else None  # type: ignore[arg-type]


def _start(body: bytes) -> str:
    text = body[: 4 * _SHOWN].decode(errors="replace").strip()
    return text[:_SHOWN] or "an empty body"
