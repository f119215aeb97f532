"""Endpoints that fail: what is saved, what is said, what is asked again."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from caldpo.errors import CaldpoError
from tests.evaluation.judge_server import FakePolicy, judge, policy_wins, saved, serving
from tests.helpers.messages import holds, names, refused

SECRET = "sk-live-0123456789abcdef"
WINNERS = (0, 3, 4, 9)


@pytest.fixture
def policy(tmp_path: Path) -> FakePolicy:
    return FakePolicy(tmp_path, [f"ours {i}" for i in range(10)], [f"them {i}" for i in range(10)])


def dies_after(calls: int, status: int = 500, message: str = "out of memory", headers: Any = None) -> Any:
    answered = [0]

    def answer_to(*question: str) -> Any:
        answered[0] += 1
        if answered[0] > calls:
            return status, headers or {}, {"error": {"message": message}}
        return policy_wins(*WINNERS)(*question)

    return answer_to


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_judge_that_dies_half_way(policy: FakePolicy, tmp_path: Path, concurrency: int) -> None:
    with serving(dies_after(9)) as server:
        facts = ("9 of 20", policy.folder / "judge_verdicts.jsonl", "out of memory")
        with refused(*facts, key="judge.base_url", remedy="same command"):
            judge(server, concurrency=concurrency).run(policy)
        assert len(saved(policy.folder)) == 9
        assert len(server.requests) <= 9 + concurrency  # those on their way; the others are not sent

        first = {line["digest"] for line in saved(policy.folder)}
        server.requests.clear()
        server.answer_to = policy_wins(*WINNERS)  # it is back
        resumed = judge(server, concurrency=concurrency).run(policy)
        assert len(server.requests) == 11
        assert first < {line["digest"] for line in saved(policy.folder)}
        assert len(saved(policy.folder)) == 20
        again = judge(server).run(policy)
        assert len(server.requests) == 11
        (tmp_path / "whole").mkdir()
        whole = judge(server).run(FakePolicy(tmp_path / "whole", policy.ours, policy.theirs))
    assert resumed.measures == again.measures == whole.measures
    assert resumed.details["usage"] == whole.details["usage"]
    assert (resumed.details["calls"], again.details["calls"], whole.details["calls"]) == (11, 0, 20)


def test_another_text_or_response_is_asked_anew(policy: FakePolicy, tmp_path: Path) -> None:
    with serving(policy_wins(*WINNERS)) as server:
        judge(server).run(policy)
        policy.ours = [*policy.ours[:9], "ours, another"]
        judge(server).run(policy)
        assert len(server.requests) == 20 + 2
        judge(server, verdict_temperature=0.5).run(policy)
        assert len(server.requests) == 20 + 2 + 20


def test_a_torn_last_line_is_asked_again(policy: FakePolicy) -> None:
    file = policy.folder / "judge_verdicts.jsonl"
    with serving(policy_wins(*WINNERS)) as server:
        whole = judge(server).run(policy)
        file.write_bytes(file.read_bytes()[:-40])
        mended = judge(server).run(policy)
        assert len(server.requests) == 21
        (note,) = (note for note in mended.notes if holds(note, "judge_verdicts.jsonl"))
        names(note, 1)
        assert mended.measures == whole.measures
        assert judge(server).run(policy).details["calls"] == 0  # the new line stands by itself


def test_a_rate_limit_is_waited_for(policy: FakePolicy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    limited = threading.Event()

    def answer_to(*question: str) -> Any:
        if not limited.is_set():
            limited.set()
            return 429, {"Retry-After": "0.05"}, {"error": {"message": "slow down"}}
        return policy_wins(*WINNERS)(*question)

    with serving(answer_to) as server:
        outcome = judge(server, max_retries=1).run(policy)
    assert (outcome.details["calls"], outcome.details["retries"], len(server.requests)) == (20, 1, 21)
    assert caplog.records == []  # retries are counted, not logged one by one
    assert outcome.measures["win_rate"].value == 0.4


@pytest.mark.parametrize(
    ("status", "facts", "remedy"),
    [
        (404, ["model", "gone"], "judge.model"),
        (429, ["calls", "gone"], "lower judge.concurrency"),
        (503, ["503", "gone"], "server"),
    ],
)
def test_each_failure_says_what_to_do(policy: FakePolicy, status: int, facts: list[str], remedy: str) -> None:
    with serving(dies_after(0, status, "gone.")) as server, refused("0 of 20", *facts, remedy=remedy):
        judge(server).run(policy)
    assert len(server.requests) == 1  # the first question goes alone


def test_a_wrong_key_is_named_and_never_shown(
    policy: FakePolicy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    echo = dies_after(2, 401, f"Incorrect API key provided: {SECRET}")
    with serving(echo) as server, pytest.raises(CaldpoError) as error:
        judge(server, api_key_env="JUDGE_KEY", concurrency=1).run(policy)
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
    names(error, "JUDGE_KEY", "key", remedy="judge.api_key_env")
    out = capfd.readouterr()
    files = [p.read_text() for p in policy.folder.rglob("*") if p.is_file()]
    assert len(files) == 1
    assert not [text for text in (str(error.value), repr(error.value), out.out, out.err, *files) if SECRET in text]


def test_a_judge_that_repeats_the_key(policy: FakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(lambda *question: f"{SECRET}\nVerdict: A") as server:
        outcome = judge(server).run(policy)
    assert SECRET not in (policy.folder / "judge_verdicts.jsonl").read_text()
    assert SECRET not in json.dumps(asdict(outcome))


def test_an_unset_key_is_told_where_one_is_wanted(policy: FakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(dies_after(20)) as server:
        judge(server).run(policy)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer none"}
    with serving(dies_after(0, 401, "no key")) as server, refused("OPENAI_API_KEY", "not set"):
        judge(server).run(policy)


def test_nobody_at_the_address(policy: FakePolicy) -> None:
    with serving(policy_wins()) as server:
        pass  # its port is free again
    with refused("Connection error", key="judge.base_url", value=server.base_url, remedy="server"):
        judge(server).run(policy)


def test_a_judge_that_takes_too_long(policy: FakePolicy) -> None:
    def answer_to(*question: str) -> str:
        time.sleep(0.5)
        return "Verdict: A"

    with serving(answer_to) as server, refused("timed out", remedy="judge.timeout"):
        judge(server, timeout=0.1).run(policy)


def test_an_interrupt_keeps_what_arrived(policy: FakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches the main thread, which waits for the pool: calls on their way are saved, no other is sent."""

    def interrupted(futures: Any, **keys: Any) -> Any:
        if len(futures) > 1 and len(saved(policy.folder)) > 2:
            raise KeyboardInterrupt
        return wait(futures, **keys)

    monkeypatch.setattr("caldpo.evaluation.judge.judge_pairs.wait", interrupted)

    def answer_to(*question: str) -> str:
        time.sleep(0.02)
        return policy_wins(*WINNERS)(*question)

    with serving(answer_to) as server, pytest.raises(KeyboardInterrupt):
        judge(server, concurrency=2).run(policy)
    assert len(saved(policy.folder)) == len(server.requests) < 10


@pytest.mark.parametrize("body", ["<html>hello</html>", {"status": "ok"}])
def test_an_answer_that_is_no_completion(policy: FakePolicy, body: Any) -> None:
    with serving(lambda *question: (200, {}, body)) as server, refused("chat completion", remedy="/v1"):
        judge(server).run(policy)


def test_a_refused_question_costs_its_pair(policy: FakePolicy) -> None:
    def answer_to(prompt: str, first: str, second: str) -> Any:
        if prompt == "question 3":
            return 400, {}, {"error": {"message": "filtered"}}
        return policy_wins(*WINNERS)(prompt, first, second)

    with serving(answer_to) as server:
        outcome = judge(server).run(policy)
        assert (outcome.measures["win_rate"].value, outcome.measures["win_rate"].n) == (pytest.approx(3 / 9), 9)
        assert any(holds(note, "2 questions") and holds(note, "filtered") for note in outcome.notes)
        assert not outcome.reusable, "the same command asks again"
        server.answer_to = policy_wins(*WINNERS)  # another day it answers
        complete = judge(server).run(policy)
    assert len(server.requests) == 22
    assert (complete.details["refused"], complete.reusable) == (0, True)
    assert complete.measures["win_rate"].value == pytest.approx(4 / 10)


def test_a_judge_that_refuses_everything(policy: FakePolicy) -> None:
    refusal = "'temperature' is not supported"
    with serving(dies_after(0, 400, refusal)) as server, refused(refusal, remedy="judge.verdict_temperature"):
        judge(server, concurrency=1).run(policy)
    assert len(server.requests) == 3
