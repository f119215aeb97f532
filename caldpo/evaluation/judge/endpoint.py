"""Ask a judge behind an OpenAI-compatible endpoint one question, and explain its errors.

No heavy imports here: the client is imported by the first :class:`Endpoint`.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any
from urllib.parse import urlsplit

from pydantic import AliasPath, BaseModel, Field, ValidationError

from caldpo.errors import CaldpoError
from caldpo.evaluation.judge.pair_comparison import JudgeModel, Question
from caldpo.evaluation.judge.verdict_cache import Answer, TokenCount, ValidText
from caldpo.security.secrets import MASK, redact_text

URL_KEY = "judge.base_url"
MAX_BYTES = 8 * 2**20
"""Largest body of a reply: far beyond a verdict, and beyond what a reasoning model writes."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PATH = "/chat/completions"
_MAX_SHOWN = 300  # characters of an endpoint's own message, or of a body that is no chat completion
_VERBOSE = ("openai", "httpx", "httpx2")  # loggers with a line at INFO for every call and retry
_QUESTION_STATUS = (400, 413, 422)  # too long, filtered, or parameters that the model does not take
_FAILURES = {
    404: ("no such model or path", "check judge.model, and judge.base_url (it mostly ends in /v1)"),
    429: ("it accepts no more calls (rate limit or quota)", "lower judge.concurrency, or wait, or check the account"),
}


class JudgeError(Exception):
    """A question has no answer: the reason, without a full stop, and a remedy."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class QuestionRefusedError(JudgeError):
    """The endpoint refused this question, and may answer the next one."""


class EndpointError(JudgeError):
    """The endpoint answers no question now."""


class InvalidReplyError(Exception):
    """A reply is no chat completion, or its body is larger or slower than any."""


class _Message(BaseModel):
    content: str | None = None


class _Completion(BaseModel):
    """The fields of a chat completion that are used."""

    message: _Message = Field(validation_alias=AliasPath("choices", 0, "message"))
    finish: ValidText = Field(None, validation_alias=AliasPath("choices", 0, "finish_reason"))
    prompt_tokens: TokenCount = Field(None, validation_alias=AliasPath("usage", "prompt_tokens"))
    completion_tokens: TokenCount = Field(None, validation_alias=AliasPath("usage", "completion_tokens"))


def require_endpoint(base_url: str | None, model: str | None) -> None:
    """Require the address of an endpoint, and a model.

    Raises:
        CaldpoError: one is missing, or the address is not a server's, or may hold a secret.
    """
    if base_url is None or model is None:
        raise CaldpoError(
            "a judge needs an endpoint and a model",
            key=URL_KEY if base_url is None else "judge.model",
            remedy="name an OpenAI-compatible endpoint and a model that it serves, such as"
            " judge.base_url=http://localhost:8000/v1 judge.model=NAME, or try everything else with judge.mock=true",
        )
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise CaldpoError(
            "a password, ? or # in an address may be a secret, and would be written into the results",
            key=URL_KEY,
            remedy="leave it out: the key comes from the environment variable that judge.api_key_env names",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.rstrip("/").endswith(_PATH):
        raise CaldpoError(
            "is no base address of a server",
            key=URL_KEY,
            value=base_url,
            remedy=f"write it as http://localhost:8000/v1, without {_PATH}",
        )


class Endpoint:
    """A connection to a judge. The client retries rate limits, time-outs and server errors with back-off.

    Args:
        judge: to connect to.
        api_key_env: environment variable with the key; without one a placeholder is sent, for servers without keys.
        timeout: seconds of one attempt, from the question to the last byte of the answer.
        max_retries: attempts after the first.
    """

    def __init__(self, judge: JudgeModel, *, api_key_env: str | None, timeout: float, max_retries: int) -> None:
        from openai import DefaultHttpxClient, OpenAI

        for library in _VERBOSE:
            logging.getLogger(library).setLevel(logging.WARNING)
        self._judge, self._variable = judge, api_key_env
        self._key = (os.environ.get(api_key_env, "") if api_key_env else "").strip()
        client = DefaultHttpxClient(
            trust_env=urlsplit(judge.base_url).hostname not in _LOOPBACK,  # a proxy does not lead back to this machine
            event_hooks=_bounding_hooks(timeout),
        )
        self._client = OpenAI(
            api_key=self._key or "none",
            base_url=judge.base_url,
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
                model=self._judge.model,
                messages=question.messages,  # type: ignore[arg-type]
                **self._judge.parameters,
            )
            answer = read_reply(raw.content)
            return answer.model_copy(update={"answer": self._masked(answer.answer), "retries": raw.retries_taken})
        except openai.APIStatusError as error:
            raise self._status_error(error.status_code, self._message(error)) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, InvalidReplyError):
                raise self._invalid_reply(error.__cause__) from None
            message = self._shown(f"{error.message.rstrip('.')}: {error.__cause__ or type(error).__name__}")
            raise EndpointError(message, "start the server, or check judge.base_url and judge.timeout") from None
        except (InvalidReplyError, openai.APIError, ValueError) as error:  # ValueError: the client cannot read it
            raise self._invalid_reply(error) from None

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _invalid_reply(self, error: Exception) -> QuestionRefusedError:
        return QuestionRefusedError(
            f"it answers, but with no chat completion: {self._message(error)}",
            "check that judge.base_url ends in /v1, and names an OpenAI-compatible endpoint",
        )

    def _status_error(self, status: int, message: str) -> JudgeError:
        if status in _QUESTION_STATUS:
            return QuestionRefusedError(
                message,
                "check that the model takes these parameters (judge.limit_by, judge.verdict_temperature) and texts of"
                " this length",
            )
        if status in (401, 403):
            state = "holds a key that it does not accept" if self._key else "is not set"
            key = f"the environment variable {self._variable} {state}" if self._variable else "no key is sent"
            return EndpointError(
                f"it refused the call: {message}; {key}",
                f"put the key into {self._variable or 'a variable'}, or name the right variable by judge.api_key_env",
            )
        reason, remedy = _FAILURES.get(status, (f"status {status}", "check the server"))
        return EndpointError(f"{reason}: {message}", remedy)

    def _message(self, error: Exception) -> str:
        body = getattr(error, "body", None)
        message = body.get("message") if isinstance(body, dict) else None
        return self._shown(str(message or getattr(error, "message", error)))

    def _shown(self, text: str) -> str:
        text = redact_text(self._masked(" ".join(text.split())))
        return (text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...").rstrip(".") or "no reason given"

    def _masked(self, text: str) -> str:
        return text.replace(self._key, MASK) if self._key else text


def read_reply(body: bytes) -> Answer:
    """Read the chat completion in a reply's body: the first choice's text, empty without one.

    Raises:
        InvalidReplyError: it is something else; shows its beginning.
    """
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError:
        raise InvalidReplyError(body[: 4 * _MAX_SHOWN].decode(errors="replace").strip() or "an empty body") from None
    return Answer(answer=completion.message.content or "", **completion.model_dump(exclude={"message"}))


def _bounding_hooks(timeout: float) -> dict[str, list[Any]]:
    """Build event hooks of an HTTP client that bound each attempt: body to :data:`MAX_BYTES`, duration to ``timeout``.

    The client's own time-out bounds each wait for the next bytes, which may repeat for ever.
    """

    def note_start(request: Any) -> None:
        request.extensions = {**request.extensions, "caldpo_started": time.monotonic()}

    def read_bounded(response: Any) -> None:
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() not in ("", "identity"):
            raise InvalidReplyError(f"it is compressed ({encoding}), which was not requested")
        deadline, body = response.request.extensions["caldpo_started"] + timeout, bytearray()
        for chunk in response.stream:
            body += chunk
            if len(body) > MAX_BYTES:
                raise InvalidReplyError(f"it has more than {MAX_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise InvalidReplyError(f"it is not complete after {timeout:g} seconds (judge.timeout)")
        response.stream.close()
        # the class is httpx's, or httpx2's from openai 3 on
        response.stream = type(response)(response.status_code, content=bytes(body)).stream

    return {"request": [note_start], "response": [read_bounded]}
