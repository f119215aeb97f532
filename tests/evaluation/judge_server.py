"""A judge for tests: a chat-completions endpoint on this machine that says what a function says; a policy for it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from caldpo.data.datamodule import HeldOutPrompt
from caldpo.evaluation.evaluation_cache import Sampling
from caldpo.evaluation.suites.judge import Judge

# what a judge says to the prompt and the two responses, or (status, headers, body) of a failure
AnswerTo = Callable[[str, str, str], Any]
_SHOWN = re.compile(
    r"=== PROMPT ===\n(.*)\n\n=== RESPONSE A ===\n(.*)\n\n=== RESPONSE B ===\n(.*)\n\n=== END", re.DOTALL
)


@dataclass
class JudgeServer:
    """What the server was asked."""

    answer_to: AnswerTo
    base_url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 7})
    lock: threading.Lock = field(default_factory=threading.Lock)

    def questions(self) -> list[tuple[str, str, str]]:
        """Prompt, first and second response of every request."""
        return [question_in(request) for request in self.requests]

    def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        reply = self.answer_to(*question_in(request))
        if not isinstance(reply, str):
            return reply
        choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return 200, {}, body | ({"usage": self.usage} if self.usage else {})


def question_in(request: dict[str, Any]) -> tuple[str, str, str]:
    match = _SHOWN.search(request["messages"][-1]["content"])
    assert match, request
    return match[1], match[2], match[3]


@contextmanager
def serving(answer_to: AnswerTo, **keys: Any) -> Iterator[JudgeServer]:
    """A server on a free port."""
    state = JudgeServer(answer_to, **keys)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(request)
                state.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, headers, body = state.answer(request)
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            kind = "text/html" if isinstance(body, str) else "application/json"
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    state.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class FakePolicy:
    """As much of a policy as the suite asks for; a response's tokens are the code points of its text."""

    folder: Path
    ours: Sequence[str]
    theirs: Sequence[str]
    oracle: Callable[[str, str], float] | None = None
    conversations: bool = False
    settings: Any = field(default_factory=lambda: SimpleNamespace(seed=0))
    ends: Sequence[int] = (-1,)

    @property
    def data(self) -> Any:
        return SimpleNamespace(oracle=self.oracle)

    def held_out(self, count: int) -> list[HeldOutPrompt]:
        prompts: list[Any] = [f"question {i}" for i in range(len(self.ours))]
        if self.conversations:
            prompts = [({"role": "user", "content": text},) for text in prompts]
        return [HeldOutPrompt(p, [], f"chosen {i}") for i, p in enumerate(prompts[:count])]

    def sampling(self, prompts: int, samples: int, max_new_tokens: int | None, temperature: float) -> Sampling:
        return Sampling(prompts, samples, max_new_tokens or 10_000, temperature, 0)

    def samples(self, who: str, sampling: Sampling) -> list[list[int]]:
        texts = self.ours if who == "policy" else self.theirs
        return [[ord(letter) for letter in text] for text in texts[: sampling.prompts]]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def require_reference(self, suite: str) -> None:
        raise AssertionError("asked for a reference")


def judge(server: JudgeServer | str, **keys: Any) -> Judge:
    """The suite against this server, with few resamples."""
    base_url = server if isinstance(server, str) else server.base_url
    return Judge(**{"base_url": base_url, "model": "m", "resamples": 50, "max_retries": 0, **keys})


def policy_wins(*places: int) -> AnswerTo:
    """A judge that prefers texts beginning with "ours" at the prompts of these numbers, and the others elsewhere."""

    def answer_to(prompt: str, first: str, second: str) -> str:
        wins = int(prompt.split()[-1]) in places
        return f"Verdict: {'A' if first.startswith('ours') == wins else 'B'}"

    return answer_to


def saved(folder: Path) -> list[dict[str, Any]]:
    """The lines of the verdicts' file."""
    return [json.loads(line) for line in (folder / "judge_verdicts.jsonl").read_text().splitlines()]
