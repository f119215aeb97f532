"""Replies that are no chat completion, or an odd one: each costs its own verdict and no other."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from caldpo.evaluation.judge import endpoint
from caldpo.evaluation.judge.endpoint import InvalidReplyError, read_reply
from tests.evaluation.judge_server import FakePolicy, judge, saved, serving
from tests.helpers.messages import holds, refused


def completion(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}]}


NONE: list[Any] = [
    {"choices": [None]},
    {"choices": {"a": 1}},
    {"choices": []},
    {"choices": "A"},
    {"choices": [{"message": None}]},
    {"choices": [{"text": "Verdict: A"}]},
    {"choices": [{"message": ["Verdict: A"]}]},
    completion(content=[{"type": "text", "text": "Verdict: A"}]),
    completion(content=7),
    {"error": {"message": "busy"}},
    [1, 2],
    None,
    "<html>Verdict: A</html>",
    "",
    '{"choices": [',
    "NaN",
]


@pytest.mark.parametrize("body", NONE, ids=lambda body: json.dumps(body)[:40])
def test_what_is_no_chat_completion(body: Any) -> None:
    with pytest.raises(InvalidReplyError):
        read_reply((body if isinstance(body, str) else json.dumps(body)).encode())


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (None, (None, None)),
        ([1], (None, None)),
        ({"prompt_tokens": 3, "completion_tokens": None}, (3, None)),
        ({"prompt_tokens": float("nan"), "completion_tokens": 2.5}, (None, None)),
        ({"prompt_tokens": True, "completion_tokens": -1}, (None, None)),
        ({"prompt_tokens": 10**400, "completion_tokens": 0}, (None, 0)),
    ],
)
def test_counts_that_are_none_are_not_known(usage: Any, counted: tuple[int | None, int | None]) -> None:
    outcome = read_reply(json.dumps(completion(content="Verdict: B") | {"usage": usage}).encode())
    assert (outcome.answer, outcome.prompt_tokens, outcome.completion_tokens) == ("Verdict: B", *counted)


@pytest.mark.parametrize("message", [{"content": None}, {}, {"content": None, "refusal": "no"}, {"content": ""}])
def test_a_judge_that_says_nothing_has_answered(message: dict[str, Any]) -> None:
    body = completion(**message)
    body["choices"][0]["finish_reason"] = {"not": "text"}
    outcome = read_reply(json.dumps(body).encode())
    assert (outcome.answer, outcome.finish) == ("", None)


def test_each_costs_its_own_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every body once for either order, one too large among them, between good answers; the good ones are saved."""
    bodies = [*NONE, completion(content="x" * 20_000 + "\nVerdict: A")]
    monkeypatch.setattr(endpoint, "MAX_BYTES", 10_000)
    count = len(bodies) + 2

    def answer_to(prompt: str, first: str, second: str) -> Any:
        place = int(prompt.split()[-1]) - 1
        if 0 <= place < len(bodies):
            return 200, {}, bodies[place]
        return f"Verdict: {'A' if first.startswith('ours') else 'B'}"

    policy = FakePolicy(tmp_path, [f"ours {i}" for i in range(count)], [f"them {i}" for i in range(count)])
    with serving(answer_to) as server:
        outcome = judge(server).run(policy)
        assert len(server.requests) == 2 * count
        assert outcome.details["refused"] == 2 * len(bodies)
        assert not outcome.reusable, "the same command asks again"
        assert (outcome.measures["win_rate"].value, outcome.measures["win_rate"].n) == (1.0, 2)
        assert any(holds(note, "chat completion") for note in outcome.notes)
        assert len(saved(tmp_path)) == 4
        server.answer_to = lambda prompt, first, second: f"Verdict: {'A' if first.startswith('ours') else 'B'}"
        assert judge(server).run(policy).measures["win_rate"].n == count
    assert len(server.requests) == 2 * count + 2 * len(bodies)


def test_a_compressed_answer_is_not_opened(tmp_path: Path) -> None:
    policy = FakePolicy(tmp_path, ["ours"] * 3, ["them"] * 3)
    answer = (200, {"Content-Encoding": "gzip"}, completion(content="Verdict: A"))
    with serving(lambda *question: answer) as server, refused("gzip", key="judge.base_url"):
        judge(server, concurrency=1).run(policy)
    assert {headers["accept-encoding"] for headers in server.headers} == {"identity"}


def test_an_answer_that_trickles_in_is_given_up(tmp_path: Path) -> None:
    """Each byte comes well within the time-out, and all of them never would."""

    class Trickle(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.02)
            except OSError:
                pass  # nobody listens any more

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    began = time.monotonic()
    try:
        with refused("0.2 seconds", key="judge.base_url"):
            judge(f"http://127.0.0.1:{server.server_port}/v1", timeout=0.2, concurrency=1).run(
                FakePolicy(tmp_path, ["ours"] * 4, ["them"] * 4)
            )
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - began < 10
