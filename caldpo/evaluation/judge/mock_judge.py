"""A stand-in judge on this machine, so that a judged evaluation can be tried without an account.

It speaks the protocol of a real one over HTTP: what is rehearsed are calls, counts, costs and files, not judgement.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from caldpo.evaluation.judge.pair_comparison import Question
from caldpo.evaluation.judge.parse_verdict import Verdict

Reward = Callable[[str, str], float]
NAME = "rehearsal"  # stands for the endpoint's address, whose port is another one each time


def stand_in_verdicts(questions: Iterable[Question], reward: Reward | None) -> dict[str, Verdict]:
    """What the stand-in says to each question, by its text.

    Args:
        questions: all that will be asked.
        reward: the data's known one, of (prompt, response); where there is none, or the prompt is a conversation, a
            coin decides that falls alike for both orders.
    """
    return {question.text: _decide(question, reward) for question in questions}


def _decide(question: Question, reward: Reward | None) -> Verdict:
    first, second = question.shown
    prompt = question.pair.prompt
    if reward is None or not isinstance(prompt, str):
        drawn = hashlib.sha256("\0".join([str(prompt), *sorted((first, second))]).encode()).digest()[0] % 2
        return "A" if (first < second) == bool(drawn) else "B"
    gap = reward(prompt, first) - reward(prompt, second)
    return "tie" if gap == 0 else "A" if gap > 0 else "B"


@contextmanager
def rehearsal(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """Serve these verdicts on a free port of this machine; yields the base URL."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.verdicts = verdicts
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    verdicts: Mapping[str, Verdict]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        answer = f"A rehearsal: nothing was judged.\n\nVerdict: {self.server.verdicts[text]}"
        words = {"prompt_tokens": len(text.split()), "completion_tokens": len(answer.split())}
        body = {
            "id": NAME,
            "object": "chat.completion",
            "created": 0,
            "model": asked["model"],
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"},
            ],
            "usage": words | {"total_tokens": sum(words.values())},
        }
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing on the terminal."""
