"""Rates of judges whose habits are known."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.evaluation.judge_server import FakePolicy, JudgeServer, judge, policy_wins, saved, serving
from tests.helpers.messages import holds, names, refused


@pytest.fixture
def policy(tmp_path: Path) -> FakePolicy:
    """Twelve prompts with responses of one length."""
    return FakePolicy(tmp_path, [f"ours {i:2}" for i in range(12)], [f"them {i:2}" for i in range(12)])


@pytest.fixture(scope="module")
def longest() -> Iterator[JudgeServer]:
    with serving(
        lambda prompt, a, b: f"Verdict: {'tie' if len(a) == len(b) else 'A' if len(a) > len(b) else 'B'}"
    ) as s:
        yield s


def test_wins_are_counted(policy: FakePolicy) -> None:
    with serving(policy_wins(0, 1, 2, 5, 7, 8, 9, 10, 11)) as server:
        outcome = judge(server).run(policy)
    measures = outcome.measures
    assert measures["win_rate"].value == 0.75
    assert measures["win_rate"].low < 0.75 < measures["win_rate"].high
    assert measures["win_rate"].n == outcome.examples == 12
    assert (measures["consistency"].value, measures["position_bias"].value) == (1.0, 0.5)
    assert (measures["ties"].value, measures["mean_length_difference"].value) == (0.0, 0.0)
    assert measures["length_controlled"].value == pytest.approx(0.75)
    assert [name for name, m in measures.items() if m.main] == ["win_rate", "length_controlled"]


def test_both_orders_are_asked_once_each(policy: FakePolicy) -> None:
    with serving(policy_wins(3)) as server:
        judge(server, verdict_seed=11, max_tokens=99, limit_by="max_completion_tokens").run(policy)
    expected = [
        (f"question {i}", *texts)
        for i in range(12)
        for o, t in [(f"ours {i:2}", f"them {i:2}")]
        for texts in ((o, t), (t, o))
    ]
    assert Counter(server.questions()) == Counter(expected)
    parameters = [{k: v for k, v in request.items() if k != "messages"} for request in server.requests]
    assert parameters == [{"model": "m", "temperature": 0.0, "seed": 11, "max_completion_tokens": 99}] * 24


def test_a_judge_that_likes_the_first_place(policy: FakePolicy) -> None:
    with serving(lambda *question: "Verdict: A") as server:
        measures = judge(server).run(policy).measures
    assert (measures["win_rate"].value, measures["win_rate"].low, measures["win_rate"].high) == (0.5, 0.5, 0.5)
    assert measures["position_bias"].value == 1.0
    assert measures["consistency"].value == 0.0


def test_a_judge_that_throws_dice(tmp_path: Path) -> None:
    count = 60
    policy = FakePolicy(tmp_path, [f"ours {i}" for i in range(count)], [f"them {i}" for i in range(count)])
    with serving(lambda *question: f"Verdict: {random.Random(str(question)).choice('AB')}") as server:
        measures = judge(server).run(policy).measures
    assert measures["win_rate"].low < 0.5 < measures["win_rate"].high
    assert measures["length_controlled"].low < 0.5 < measures["length_controlled"].high
    assert 0.3 < measures["consistency"].value < 0.7
    assert measures["win_rate"].high - measures["win_rate"].low < 0.3


def test_a_judge_that_likes_length(tmp_path: Path, longest: JudgeServer) -> None:
    differences = range(-19, 60, 2)
    policy = FakePolicy(tmp_path, ["o" * (60 + difference) for difference in differences], ["t" * 60] * 40)
    measures = judge(longest).run(policy).measures
    assert measures["win_rate"].value == 30 / 40
    assert measures["win_rate"].low > 0.55
    assert abs(measures["length_controlled"].value - 0.5) < 0.03
    assert measures["mean_length_difference"].value == 20


def test_nearly_always_longer_is_noted(tmp_path: Path, longest: JudgeServer) -> None:
    policy = FakePolicy(tmp_path, [f"a long answer {i}" for i in range(6)], [f"short {i}" for i in range(6)])
    outcome = judge(longest).run(policy)
    (note,) = outcome.notes
    names(note, "longer", "100%")


def test_equal_texts_are_even_without_asking(tmp_path: Path) -> None:
    policy = FakePolicy(tmp_path, ["same", " same\n", "ours 2", "ours 3"], ["same", "same", "them 2", "them 3"])
    with serving(policy_wins(2, 3)) as server:
        outcome = judge(server).run(policy)
    assert {prompt for prompt, _, _ in server.questions()} == {"question 2", "question 3"}
    assert outcome.measures["win_rate"].value == (0.5 + 0.5 + 1 + 1) / 4
    assert outcome.measures["identical"].value == 0.5
    assert outcome.measures["consistency"].n == 2
    assert (outcome.details["identical"], outcome.details["calls"]) == (2, 4)


def test_nothing_but_equal_texts_asks_nothing(tmp_path: Path) -> None:
    outcome = judge("http://127.0.0.1:9/v1").run(FakePolicy(tmp_path, ["x", "y"], ["x", "y"]))
    assert outcome.measures["win_rate"].value == outcome.measures["length_controlled"].value == 0.5
    assert outcome.measures["position_bias"].n == 0


def test_ties_and_half_wins(policy: FakePolicy) -> None:
    def answer_to(prompt: str, first: str, second: str) -> str:
        number = int(prompt.split()[-1])
        if number < 4:
            return "Verdict: tie"
        # the policy wins where it stands first, and the judge sees no difference where it stands second
        return "Verdict: A" if first.startswith("ours") else "Verdict: tie"

    with serving(answer_to) as server:
        measures = judge(server).run(policy).measures
    assert measures["win_rate"].value == pytest.approx((4 * 0.5 + 8 * 0.75) / 12)
    assert measures["ties"].value == pytest.approx((8 + 8) / 24)
    assert measures["consistency"].value == pytest.approx(4 / 12)
    assert (measures["position_bias"].value, measures["position_bias"].n) == (1.0, 8)


def test_unreadable_answers_leave_their_pair_out(policy: FakePolicy) -> None:
    def answer_to(prompt: str, first: str, second: str) -> str:
        if prompt == "question 0":
            return "I would rather not say."
        if prompt == "question 1" and first.startswith("them"):
            return "Answer A is long. Answer B is"
        return "Verdict: A" if first.startswith("ours") == (prompt < "question 5") else "Verdict: B"

    with serving(answer_to) as server:
        outcome = judge(server, prompts=8).run(policy)
    wins = 3  # of the questions 2 to 7 those below 5
    assert (outcome.measures["win_rate"].value, outcome.measures["win_rate"].n) == (wins / 6, 6)
    assert outcome.details["without_verdict"] == 3
    (note,) = (note for note in outcome.notes if "verdict" in note)
    names(note, "3 of 16", "2 pairs")
    assert sum(line["verdict"] is None for line in saved(policy.folder)) == 3


def test_no_readable_answer_is_an_error(policy: FakePolicy) -> None:
    """Also where a pair of equal texts, which nobody was asked about, would count as even."""
    policy.ours = [policy.theirs[0], *policy.ours[1:]]
    with serving(lambda *question: "Both are nice.") as server, refused("judge_verdicts.jsonl"):
        judge(server).run(policy)


def test_against_the_chosen_responses(policy: FakePolicy) -> None:
    with serving(policy_wins(0)) as server:
        outcome = judge(server, against="chosen").run(policy)
    assert {b for _, a, b in server.questions() if a.startswith("ours")} == {f"chosen {i}" for i in range(12)}
    names(outcome.measures["win_rate"].title, "win rate", "chosen")


def test_conversations_are_shown_as_turns(policy: FakePolicy) -> None:
    policy.conversations = True
    with serving(policy_wins(0)) as server:
        judge(server, prompts=2).run(policy)
    assert {prompt for prompt, _, _ in server.questions()} == {"User: question 0", "User: question 1"}


def test_many_calls_at_a_time_change_nothing(policy: FakePolicy, tmp_path: Path) -> None:
    with serving(policy_wins(0, 4, 6)) as server:
        (tmp_path / "one").mkdir()
        one = judge(server, concurrency=1).run(FakePolicy(tmp_path / "one", policy.ours, policy.theirs))
        many = judge(server, concurrency=16).run(policy)
    assert asdict(many) == asdict(one)


def test_tokens_and_cost(policy: FakePolicy) -> None:
    with serving(policy_wins(0), usage={"prompt_tokens": 1000, "completion_tokens": 20}) as server:
        outcome = judge(server, price_input=2.5, price_output=10).run(policy)
    assert outcome.details["usage"] == {
        "answers": 24,
        "prompt_tokens": 24_000,
        "completion_tokens": 480,
        "uncounted": 0,
        "cost": pytest.approx(24_000 * 2.5e-6 + 480 * 10e-6),
    }
    with serving(policy_wins(0), usage=None) as server:
        outcome = judge(server, price_input=2.5, price_output=10).run(policy)
    assert (outcome.details["usage"]["uncounted"], outcome.details["usage"]["cost"]) == (24, 0.0)
    assert any(holds(note, "24 answers") and holds(note, "tokens") for note in outcome.notes)


def test_cut_responses_are_noted(policy: FakePolicy) -> None:
    with serving(policy_wins(0)) as server:
        outcome = judge(server, max_new_tokens=7).run(policy)
    assert any(all(holds(note, fact) for fact in ("100%", "policy's", "7 tokens")) for note in outcome.notes)


def test_a_mock_judge_follows_the_known_reward(policy: FakePolicy) -> None:
    policy.oracle = lambda prompt, text: (int(text[-2:]) < 9) * (1.0 if text.startswith("ours") else 0.5)
    suite = judge("http://127.0.0.1:9/v1", mock=True, price_input=1, price_output=1)
    outcome = suite.run(policy)
    assert outcome.measures["win_rate"].value == (9 + 3 * 0.5) / 12  # none of the last three earns anything
    assert (outcome.measures["ties"].value, outcome.measures["consistency"].value) == (0.25, 1.0)
    names(outcome.details["judge"], "mock")
    names(outcome.notes[0], "judge")
    assert [name for name, m in outcome.measures.items() if m.main] == ["win_rate", "length_controlled"]
    assert all("mock" in m.title for m in outcome.measures.values())
    assert outcome.details["usage"]["cost"] > 0
    assert suite.run(policy).details["calls"] == 0  # saved as those of a judge are


def test_a_mock_judge_without_a_reward_throws_a_coin_once_a_pair(tmp_path: Path) -> None:
    policy = FakePolicy(tmp_path, [f"ours {i}" for i in range(40)], [f"them {i}" for i in range(40)])
    measures = judge("http://127.0.0.1:9/v1", mock=True).run(policy).measures
    assert measures["consistency"].value == 1.0
    assert not any(m.main for m in measures.values()), "a coin says nothing of the policy"
    rate = measures["win_rate"]
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < 0.5 < rate.high, "a policy that a coin decides about wins half"
