"""Ask a judge behind an OpenAI-compatible endpoint one question, and explain its errors.

No heavy imports here: the client is imported by the first :class:`Endpoint`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from caldpo.errors import CaldpoError
from caldpo.evaluation.judge.pair_comparison import JudgeModel, Question
from caldpo.evaluation.judge.verdict_cache import Answer
from caldpo.security.secrets import MASK, redact_text

URL_KEY = "judge.base_url"
MAX_BYTES = 8 * 2**20
"""Largest body of a reply: far beyond a verdict, and beyond what a reasoning model writes."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PATH = "/chat/completions"
_MAX_SHOWN = 300  # characters of an endpoint's own message, or of a body that is no chat completion
_MAX_TOKENS = 2**53  # larger counts are not believed
_VERBOSE = ("openai", "httpx", "httpx2")  # loggers with a line at INFO for every call and retry
_QUESTION_STATUS = (400, 413, 422)  # too long, filtered, or parameters that the model does not take


class QuestionRefusedError(Exception):
    """The endpoint refused this question, and may answer the next one.

    Args:
        reason: without a full stop.
        remedy: for the case that no question is answered.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class EndpointError(Exception):
    """The endpoint answers no question now.

    Args:
        reason: without a full stop.
        remedy: what to do about it.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class InvalidReplyError(Exception):
    """A reply is no chat completion, or its body is larger or slower than any."""


@dataclass(frozen=True)
class Reply:
    """The fields of a chat completion that are used.

    Args:
        content: the first choice's text; empty without one.
        finish: why the judge stopped (``stop``, ``length``, ...), if the endpoint reports it.
        prompt_tokens: read by the judge; None where the endpoint does not count.
        completion_tokens: written by it; likewise.
    """

    content: str
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


def require_endpoint(base_url: str | None, model: str | None) -> None:
    """Require the address of an endpoint, and a model.

    Raises:
        CaldpoError: one is missing, or the address is invalid.
    """
    if base_url is None:
        raise CaldpoError(
            "no endpoint is named for the judge",
            key=URL_KEY,
            remedy="name an OpenAI-compatible one, such as judge.base_url=http://localhost:8000/v1"
            " judge.model=NAME, or try everything else with judge.mock=true",
        )
    check_address(base_url)
    if model is None:
        raise CaldpoError(
            "no model is named for the judge", key="judge.model", remedy=f"name a model that {base_url} serves"
        )


def check_address(base_url: str) -> None:
    """Check the address of an endpoint.

    Raises:
        CaldpoError: it is no address of a server, or contains a password or a query.
    """
    parts = urlsplit(base_url)
    if parts.username or parts.password:
        raise CaldpoError(
            "an address with a password in it would be written into the results",
            key=URL_KEY,
            remedy="leave it out: the key comes from the environment variable that judge.api_key_env names",
        )
    if parts.query or parts.fragment:
        raise CaldpoError(
            "no path can be appended to an address with ? or #, and what follows may be a secret",
            key=URL_KEY,
            remedy="leave that part out: the key comes from the environment variable that judge.api_key_env names",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CaldpoError(
            "is no address of a server", key=URL_KEY, value=base_url, remedy="write it as http://localhost:8000/v1"
        )
    if parts.path.rstrip("/").endswith(_PATH):
        raise CaldpoError(f"{_PATH} is appended to it", key=URL_KEY, value=base_url, remedy=f"leave out {_PATH}")


class Endpoint:
    """A connection to a judge. The client retries rate limits, time-outs and server errors with back-off.

    Args:
        judge: model and parameters.
        base_url: address of the server; the mock judge's differs from ``judge.base_url``.
        api_key_env: environment variable with the key; without one a placeholder is sent, for servers without keys.
        timeout: seconds of one attempt, from the question to the last byte of the answer.
        max_retries: attempts after the first.
    """

    def __init__(
        self, judge: JudgeModel, base_url: str, *, api_key_env: str | None, timeout: float, max_retries: int
    ) -> None:
        from openai import DefaultHttpxClient, OpenAI

        for library in _VERBOSE:
            logging.getLogger(library).setLevel(logging.WARNING)
        self.judge, self.variable = judge, api_key_env
        self._key = (os.environ.get(api_key_env, "") if api_key_env else "").strip()
        client = DefaultHttpxClient(
            trust_env=urlsplit(base_url).hostname not in _LOOPBACK,  # a proxy does not lead back to this machine
            event_hooks=_bounding_hooks(timeout),
        )
        self._client = OpenAI(
            api_key=self._key or "none",
            base_url=base_url,
            timeout=timeout,
            max_retries=max_retries,
            http_client=client,
            default_headers={"Accept-Encoding": "identity"},  # a small compressed body may unpack to any size
        )

    def ask(self, question: Question) -> Answer:
        """Send one question and return the judge's answer.

        Raises:
            QuestionRefusedError: no answer to this question, or one that is no chat completion.
            EndpointError: the endpoint cannot be reached, or needs another key, model or path.
        """
        import openai

        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.judge.model,
                messages=question.messages,  # type: ignore[arg-type]
                **self.judge.parameters,
            )
            reply = read_reply(raw.content)
            return Answer(
                answer=self._masked(reply.content),
                finish=reply.finish,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                retries=raw.retries_taken,
            )
        except InvalidReplyError as error:
            raise self._invalid_reply(error) from None
        except openai.APIStatusError as error:
            raise self._status_error(error.status_code, self._message(error)) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, InvalidReplyError):
                raise self._invalid_reply(error.__cause__) from None
            message = self._shown(f"{error.message.rstrip('.')}: {error.__cause__ or type(error).__name__}")
            raise EndpointError(message, "start the server, or check judge.base_url and judge.timeout") from None
        except (openai.APIError, ValueError) as error:  # an answer that the client itself cannot read
            raise self._invalid_reply(error) from None

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _invalid_reply(self, error: Exception) -> QuestionRefusedError:
        reason = f"it answers, but with no chat completion: {self._message(error)}"
        return QuestionRefusedError(
            reason, "check that judge.base_url ends in /v1, and names an OpenAI-compatible endpoint"
        )

    def _status_error(self, status: int, message: str) -> Exception:
        if status in _QUESTION_STATUS:
            return QuestionRefusedError(
                message,
                "check that the model takes these parameters (judge.limit_by, judge.verdict_temperature) and texts of"
                " this length",
            )
        if status in (401, 403):
            return EndpointError(f"it refused the call: {message}; {self._key_state()}", self._key_remedy())
        if status == 404:
            return EndpointError(
                f"no such model or path: {message}", "check judge.model, and judge.base_url (it mostly ends in /v1)"
            )
        if status == 429:
            return EndpointError(
                f"it accepts no more calls (rate limit or quota): {message}",
                "lower judge.concurrency, or wait, or check the account",
            )
        return EndpointError(f"status {status}: {message}", "check the server")

    def _key_state(self) -> str:
        if self.variable is None:
            return "no key is sent"
        state = "holds a key that it does not accept" if self._key else "is not set"
        return f"the environment variable {self.variable} {state}"

    def _key_remedy(self) -> str:
        return f"put the key into {self.variable or 'a variable'}, or name the right variable by judge.api_key_env"

    def _message(self, error: Exception) -> str:
        body = getattr(error, "body", None)
        message = body.get("message") if isinstance(body, dict) else None
        return self._shown(str(message or getattr(error, "message", error)))

    def _shown(self, text: str) -> str:
        text = redact_text(self._masked(" ".join(text.split())))
        return (text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...").rstrip(".") or "no reason given"

    def _masked(self, text: str) -> str:
        return text.replace(self._key, MASK) if self._key else text


def read_reply(body: bytes) -> Reply:
    """Read the chat completion in a reply's body.

    Raises:
        InvalidReplyError: it is something else; shows its beginning.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
        usage = completion.get("usage")
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        raise InvalidReplyError(_beginning(body)) from None
    if content is not None and not isinstance(content, str):
        raise InvalidReplyError(f"the content of its message is no text: {_beginning(body)}")
    return Reply(
        content=content or "",
        finish=finish if isinstance(finish, str) else None,
        prompt_tokens=_token_count(usage, "prompt_tokens"),
        completion_tokens=_token_count(usage, "completion_tokens"),
    )


def _token_count(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, Mapping) else None
    valid = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < _MAX_TOKENS
    return int(count) if valid else None  # type: ignore[arg-type]


def _beginning(body: bytes) -> str:
    text = body[: 4 * _MAX_SHOWN].decode(errors="replace").strip()
    return text[:_MAX_SHOWN] or "an empty body"


def _bounding_hooks(timeout: float) -> dict[str, list[Any]]:
    """Build event hooks of an HTTP client that bound each attempt: body to :data:`MAX_BYTES`, duration to ``timeout``.

    The client's own time-out bounds each wait for the next bytes, which may repeat for ever.

    Args:
        timeout: seconds, from sending the question to the last byte of the answer.
    """

    def started(request: Any) -> None:
        request.extensions = {**request.extensions, "caldpo_started": time.monotonic()}

    def bound(response: Any) -> None:
        start = response.request.extensions.get("caldpo_started", time.monotonic())
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() not in ("", "identity"):
            raise InvalidReplyError(f"it is compressed ({encoding}), which was not requested")
        response.stream = _bounded(response.stream, start + timeout, timeout)

    return {"request": [started], "response": [bound]}


def _bounded(stream: Any, deadline: float, timeout: float) -> Any:
    """Wrap a stream of the client in one that raises once it is too long or too slow."""
    # the client checks for this base class: of httpx, or of httpx2 from openai 3 on
    base: Any = next(kind for kind in type(stream).__mro__ if kind.__name__ == "SyncByteStream")

    class Bounded(base):
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in stream:
                size += len(chunk)
                if size > MAX_BYTES:
                    raise InvalidReplyError(f"it has more than {MAX_BYTES:,} bytes")
                if time.monotonic() > deadline:
                    raise InvalidReplyError(f"it is not complete after {timeout:g} seconds (judge.timeout)")
                yield chunk

        def close(self) -> None:
            stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(stream, name)

    return Bounded()
