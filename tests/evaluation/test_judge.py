"""``suite=judge`` by its command, and what it answers before anything is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from caldpo.errors import CaldpoError
from caldpo.evaluation.suites.judge import Judge
from tests.evaluation.judge_server import saved, serving
from tests.evaluation.runs import evaluate, inside, result, value
from tests.helpers.messages import holds, names, refused

GOOD: dict[str, Any] = {"base_url": "http://localhost:8000/v1", "model": "m"}


def test_the_command_from_run_to_result(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The judge prefers the response that comes first in the alphabet; the rate is counted anew from the file."""
    with (
        serving(lambda prompt, a, b: f"Words.\n\n**Verdict: {'A' if a < b else 'B'}**") as server,
        inside(trained.parent),
    ):
        words = (
            "run",
            f"output={tmp_path}",
            "suite=judge",
            f"judge.base_url={server.base_url}",
            "judge.model=m",
            "judge.prompts=12",
            "judge.resamples=50",
            "judge.price_input=1",
            "judge.price_output=2",
        )
        evaluate(*words)
        calls = len(server.requests)
        evaluate(*words)
        evaluate(*words, "overwrite=true")
        assert len(server.requests) == calls
    results = result(tmp_path, "judge")
    lines = saved(tmp_path / "evaluation")
    assert len(lines) == calls == results["details"]["usage"]["answers"]
    wins = sum((line["verdict"] == line["policy_is"]) for line in lines)
    even = 12 - len(lines) / 2
    assert value(results, "win_rate") == pytest.approx((wins / 2 + even / 2) / 12)
    assert results["examples"] == 12
    assert results["details"]["usage"]["cost"] == pytest.approx(calls * (100 + 2 * 7) / 1e6)
    assert results["determined_by"]["suite"]["prompt_digest"]
    assert {"api_key_env", "concurrency", "timeout", "max_retries"}.isdisjoint(results["determined_by"]["suite"])
    texts = {row["prompt"] for row in map(json.loads, (trained.parent / "test.jsonl").read_text().splitlines())}
    assert {line["prompt"] for line in lines} <= texts
    out, err = capsys.readouterr()
    assert "HTTP Request" not in out + err  # the client's library would log every call
    first, second = (line for line in out.splitlines() if holds(line, server.base_url))
    names(first, f"{calls} calls", "m")
    names(second, "0 calls", "m", f"{calls} verdicts")
    names(out, "overwrite=true")  # measures anew what is there


def test_a_judge_that_dies_is_resumed_by_the_same_command(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answered = [0]

    def answer_to(prompt: str, first: str, second: str) -> Any:
        answered[0] += 1
        return (500, {}, {"error": {"message": "gone"}}) if answered[0] > 7 else "Verdict: A"

    with serving(answer_to) as server, inside(trained.parent):
        words = ("run", f"output={tmp_path}", "suite=judge", "judge.prompts=12", "judge.resamples=20")
        named = (f"judge.base_url={server.base_url}", "judge.model=m", "judge.max_retries=0", "judge.concurrency=2")
        evaluate(*words, *named, fails=1)
        names(capsys.readouterr().err, "7 of 24")
        assert not (tmp_path / "evaluation" / "judge.json").exists()
        asked = len(server.requests)
        server.answer_to = lambda prompt, first, second: "Verdict: A"
        evaluate(*words, *named)
        assert len(server.requests) - asked == 24 - 7
        evaluate(*words, *named)
        assert len(server.requests) - asked == 24 - 7
    results = result(tmp_path, "judge")
    assert value(results, "win_rate") == 0.5, "it always says A, in both orders"
    assert value(results, "position_bias") == 1.0
    assert len(saved(tmp_path / "evaluation")) == 24


def test_a_run_against_its_reference_draws_both(trained: Path, tmp_path: Path) -> None:
    with inside(trained.parent):
        evaluate("run", f"output={tmp_path}", "suite=judge", "judge.mock=true", "judge.prompts=5", "judge.resamples=9")
    results = result(tmp_path, "judge_mock")
    assert not (tmp_path / "evaluation" / "judge.json").exists(), "a mock judge overwrites no judge's results"
    names(results["details"]["judge"], "mock")
    assert results["details"]["calls"] == 2 * (5 - results["details"]["identical"]) > 0


def test_no_endpoint_is_answered_before_anything_loads(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("caldpo.evaluation.evaluation_run.EvaluatedPolicy", load)
    with inside(trained.parent):
        evaluate("run", "suite=judge", fails=2)
    names(capsys.readouterr().err, "error: judge.base_url:", remedy="judge.mock=true")


@pytest.mark.parametrize(
    ("keys", "key", "facts"),
    [
        ({"base_url": None}, "judge.base_url", ["endpoint"]),
        ({"model": None}, "judge.model", ["http://localhost:8000/v1"]),
        ({"base_url": "localhost:8000"}, "judge.base_url", ["localhost:8000"]),
        ({"base_url": "http://localhost:8000/v1/chat/completions/"}, "judge.base_url", ["/chat/completions"]),
        ({"base_url": "https://me:hunter22@host/v1"}, "judge.base_url", ["password"]),
        ({"base_url": "https://host/v1?api_key=hunter22"}, "judge.base_url", ["secret"]),
        ({"prompt": "nothing.txt"}, "judge.prompt", ["nothing.txt", "No such file"]),
        ({"price_input": 1.0}, "judge.price_output", ["prices"]),
    ],
)
def test_settings_are_checked_early(keys: dict[str, Any], key: str, facts: list[str]) -> None:
    Judge(**GOOD).check()
    with pytest.raises(CaldpoError) as error:
        Judge(**{**GOOD, **keys}).check()
    names(error, *facts, key=key)
    assert "hunter22" not in str(error.value)


def test_a_key_in_place_of_its_variable_is_refused() -> None:
    with refused("environment variable", key="api_key_env"):
        Judge(**GOOD, api_key_env="sk-not-a-name")


def test_a_mock_judge_needs_no_endpoint() -> None:
    Judge(mock=True).check()


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with refused(remedy="pip install 'caldpo[judge]'"):
        Judge(**GOOD).check()


def test_a_changed_text_is_another_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("$prompt $first $second")
    before = Judge(**GOOD, prompt=str(file)).settings()
    file.write_text("$prompt: $first $second")
    assert before != Judge(**GOOD, prompt=str(file)).settings()
    assert before == Judge(**GOOD, prompt=str(file), concurrency=1).settings() | {
        "prompt_digest": before["prompt_digest"]
    }
