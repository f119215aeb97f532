"""Serve a mock judge on this machine, to try a judged evaluation without an account.

It speaks the protocol of a real one over HTTP, so that calls, counts, costs and files are real; the verdicts are not.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from caldpo.evaluation.judge.pair_comparison import Question, Verdict

Reward = Callable[[str, str], float]
NAME = "mock"  # in place of the endpoint's address, whose port changes


def mock_verdicts(questions: Iterable[Question], reward: Reward | None) -> dict[str, Verdict]:
    """Decide the verdict of each question, by its text.

    Args:
        questions: all that will be asked.
        reward: the data's known true reward of (prompt, response); without one, or for a conversation, a coin decides
            that falls alike for both orders.
    """
    return {question.text: _decide(question, reward) for question in questions}


@contextmanager
def mock_server(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """Serve these verdicts on a free port of this machine; yields the base URL."""
    server = _Server(verdicts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _decide(question: Question, reward: Reward | None) -> Verdict:
    first, second = question.responses
    prompt = question.pair.prompt
    if reward is None or not isinstance(prompt, str):
        coin = hashlib.sha256("\0".join([str(prompt), *sorted((first, second))]).encode()).digest()[0] % 2
        return "A" if (first < second) == bool(coin) else "B"
    gap = reward(prompt, first) - reward(prompt, second)
    return "tie" if gap == 0 else "A" if gap > 0 else "B"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, verdicts: Mapping[str, Verdict]) -> None:
        self.verdicts = verdicts
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"]
        answer = f"This is a mock judge.\n\nVerdict: {self.server.verdicts[text]}"
        tokens = {"prompt_tokens": len(text.split()), "completion_tokens": len(answer.split())}
        body = {
            "id": NAME,
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"},
            ],
            "usage": tokens | {"total_tokens": sum(tokens.values())},
        }
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Keep the terminal silent."""
