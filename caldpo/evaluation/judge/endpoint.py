"""An OpenAI-compatible endpoint: one question, one answer, and what its errors mean."""

from __future__ import annotations

import logging
import os
from urllib.parse import urlsplit

from caldpo.errors import CaldpoError
from caldpo.evaluation.judge.pair_comparison import JudgeModel, Question
from caldpo.evaluation.judge.reply import BadBody, NoCompletion, bounded_hooks, read_reply
from caldpo.evaluation.judge.verdict_cache import Answer
from caldpo.security.secrets import MASK, redact_text

KEY = "judge.base_url"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PATH = "/chat/completions"
_LONGEST = 300  # characters of an endpoint's own words that are shown
_TALKATIVE = ("openai", "httpx", "httpx2")  # at INFO a line for every call and every retry
_OF_THE_QUESTION = (400, 413, 422)  # too long, filtered, or parameters that the model does not take


class Refused(Exception):  # noqa: N818 - no fault: an answer of its own kind
    """This question has got no verdict, and the next one may.

    Args:
        reason: why, without a full stop.
        remedy: what to do about it where no question gets one.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class Unusable(Exception):  # noqa: N818
    """The endpoint answers no question now.

    Args:
        reason: why, without a full stop.
        remedy: what to do about it.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def require_endpoint(base_url: str | None, model: str | None) -> None:
    """Whether somebody is named who judges.

    Raises:
        CaldpoError: nobody is, or the address is none.
    """
    if base_url is None:
        raise CaldpoError(
            "no endpoint is named that judges",
            key=KEY,
            remedy="name an OpenAI-compatible one, such as judge.base_url=http://localhost:8000/v1"
            " judge.model=NAME, or try everything else with judge.mock=true",
        )
    check_address(base_url)
    if model is None:
        raise CaldpoError("the judge is not named", key="judge.model", remedy=f"name a model that {base_url} serves")


def check_address(base_url: str) -> None:
    """Whether this can be the address of an endpoint.

    Raises:
        CaldpoError: it is none, or holds a password.
    """
    parts = urlsplit(base_url)
    if parts.username or parts.password:
        raise CaldpoError(
            "an address with a password in it would be written into the results",
            key=KEY,
            remedy="leave it out: the key comes from the environment variable that judge.api_key_env names",
        )
    if parts.query or parts.fragment:
        raise CaldpoError(
            "an address with ? or # in it cannot have a path appended, and what follows may be a secret",
            key=KEY,
            remedy="leave that part out: the key comes from the environment variable that judge.api_key_env names",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CaldpoError(
            "is no address of a server", key=KEY, value=base_url, remedy="write it as http://localhost:8000/v1"
        )
    if parts.path.rstrip("/").endswith(_PATH):
        raise CaldpoError(f"{_PATH} is appended to it", key=KEY, value=base_url, remedy=f"leave out {_PATH}")


class Endpoint:
    """Asks a judge. Rate limits, time-outs and failures of the server are tried again by the client, with back-off.

    Args:
        judge: who is asked, and with which parameters.
        base_url: where; a rehearsal's is not the judge's own.
        api_key_env: environment variable with the key; without one, a server that wants none gets a placeholder.
        timeout: seconds of one attempt, from the question to the last byte of the answer.
        max_retries: attempts after the first.
    """

    def __init__(
        self, judge: JudgeModel, base_url: str, *, api_key_env: str | None, timeout: float, max_retries: int
    ) -> None:
        from openai import DefaultHttpxClient, OpenAI

        for library in _TALKATIVE:
            logging.getLogger(library).setLevel(logging.WARNING)
        self.judge, self.variable = judge, api_key_env
        self._key = (os.environ.get(api_key_env, "") if api_key_env else "").strip()
        client = DefaultHttpxClient(
            trust_env=urlsplit(base_url).hostname not in _LOOPBACK,  # a proxy does not lead back to this machine
            event_hooks=bounded_hooks(timeout),
        )
        self._client = OpenAI(
            api_key=self._key or "none",
            base_url=base_url,
            timeout=timeout,
            max_retries=max_retries,
            http_client=client,
            default_headers={"Accept-Encoding": "identity"},  # a small body that is compressed may be of any size
        )

    def ask(self, question: Question) -> Answer:
        """The judge's answer.

        Raises:
            Refused: there is none to this question, or one that is no chat completion.
            Unusable: the endpoint cannot be reached, or wants another key, model or path.
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
        except (BadBody, NoCompletion) as error:
            raise self._no_completion(error) from None
        except openai.APIStatusError as error:
            raise self._meaning(error.status_code, self._words(error)) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, BadBody):
                raise self._no_completion(error.__cause__) from None
            words = self._shown(f"{error.message.rstrip('.')}: {error.__cause__ or type(error).__name__}")
            raise Unusable(words, "start the server, or look whether judge.base_url and judge.timeout fit") from None
        except (openai.APIError, ValueError) as error:  # an answer that the client itself cannot read
            raise self._no_completion(error) from None

    def close(self) -> None:
        """Give back its connections."""
        self._client.close()

    def _no_completion(self, error: Exception) -> Refused:
        reason = f"it answers, but with no chat completion: {self._words(error)}"
        return Refused(reason, "look whether judge.base_url ends in /v1, and names an OpenAI-compatible endpoint")

    def _meaning(self, status: int, words: str) -> Exception:
        if status in _OF_THE_QUESTION:
            remedy = "look whether the model takes these parameters (judge.limit_by, judge.verdict_temperature)"
            return Refused(words, f"{remedy} and texts of this length")
        if status in (401, 403):
            return Unusable(f"it refused the call: {words}; {self._key_state()}", self._key_remedy())
        if status == 404:
            return Unusable(
                f"no such model or path: {words}", "check judge.model, and judge.base_url (it mostly ends in /v1)"
            )
        if status == 429:
            return Unusable(
                f"it takes no more calls: {words}", "lower judge.concurrency, or wait, or look after the account"
            )
        return Unusable(f"status {status}: {words}", "look after the server")

    def _key_state(self) -> str:
        if self.variable is None:
            return "no key is sent"
        state = "holds a key that it does not take" if self._key else "is not set"
        return f"the environment variable {self.variable} {state}"

    def _key_remedy(self) -> str:
        return f"put the key into {self.variable or 'a variable'}, or name the right variable by judge.api_key_env"

    def _words(self, error: Exception) -> str:
        body = getattr(error, "body", None)
        said = body.get("message") if isinstance(body, dict) else None
        return self._shown(str(said or getattr(error, "message", error)))

    def _shown(self, text: str) -> str:
        text = redact_text(self._masked(" ".join(text.split())))
        return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...").rstrip(".") or "no reason given"

    def _masked(self, text: str) -> str:
        return text.replace(self._key, MASK) if self._key else text
