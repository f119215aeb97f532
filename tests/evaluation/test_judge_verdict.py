"""What a judge is asked, and what its answers are read as."""

from __future__ import annotations

from pathlib import Path
from string import Template

import pytest

from caldpo.evaluation.judge.pair_comparison import (
    JudgeModel,
    Pair,
    both_orders,
    load_template,
    read_verdict,
    readable,
)
from tests.helpers.messages import refused

READ = [
    ("Verdict: A", "A"),
    ("Verdict: B", "B"),
    ("Verdict: tie", "tie"),
    ("verdict: a", "A"),
    ("VERDICT: TIE.", "tie"),
    ("**Verdict: B**", "B"),
    ("**Verdict:** B", "B"),
    ("### Final verdict: [[A]]", "A"),
    ("My final verdict is: [[B]]", "B"),
    ("The better one is [[tie]] here", "tie"),
    ("Verdict: Answer A", "A"),
    ("Final verdict: Summary B is better.", "B"),
    ("Winner: reply b", "B"),
    ("Better response: (A)", "A"),
    ("The verdict is A.", "A"),
    ("Verdict - B", "B"),
    ("Verdict: it is a tie", "tie"),
    ("Verdict: tied", "tie"),
    ("Some words.\n\nAnswer A", "A"),
    ("Some words.\n\n**B**\n\n", "B"),
    ("Some words.\ntie", "tie"),
    ("Verdict: A\n\nThank you.", "A"),
    ("Verdict: A\nOn reflection:\nVerdict: B", "B"),
    ("First I thought [[A]] or [[B]].\nVerdict: tie", "tie"),
    ("<think>Verdict: A</think>\nVerdict: B", "B"),
    # none of these names one
    ("", None),
    ("<think>Verdict: A, or is it", None),
    ("Answer A is clear, answer B is not.", None),
    ("**Answer A**\nIt is clear.\n**Answer B**\nIt breaks", None),
    ("Answer A:\nIt is clear and", None),
    ("Say [[A]] or [[B]]", None),
    ("Verdict: C", None),
    ("Verdict: A or B", None),
    ("Verdict:", None),
    ("I cannot judge this.", None),
]


@pytest.mark.parametrize(("answer", "verdict"), READ)
def test_verdicts_are_read(answer: str, verdict: str | None) -> None:
    assert read_verdict(answer) == verdict


def test_places_are_filled_in_one_pass() -> None:
    template = Template("$prompt|$first|$second|$$5")
    question, _ = both_orders(Pair("{prompt} $first", "$second {0}", "\\1 $$"), template)
    assert question.text == "{prompt} $first|$second {0}|\\1 $$|$5"


@pytest.mark.parametrize("name", ["tldr", "hh", "general"])
def test_own_texts_show_all_three_once_and_say_how_to_end(name: str) -> None:
    text = both_orders(Pair("PROMPT-HERE", "FIRST-HERE", "SECOND-HERE"), load_template(name))[0].text
    places = [text.index(word) for word in ("PROMPT-HERE", "FIRST-HERE", "SECOND-HERE")]
    assert places == sorted(places)
    assert all(text.count(word) == 1 for word in ("PROMPT-HERE", "FIRST-HERE", "SECOND-HERE"))
    endings = [line for line in text.splitlines() if line.startswith("Verdict:")]
    assert [read_verdict(line) for line in endings] == ["A", "B", "tie"]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"$prompt $first", ["$second"]),
        (b"nothing", ["$prompt", "$first", "$second"]),
        (b"$prompt $first $second $third", ["$third"]),
        (b"$prompt ${first} $second for $5", ["$$"]),
        (b"\xff\xfe $prompt", ["UTF-8"]),
    ],
)
def test_a_persons_text_is_checked(tmp_path: Path, content: bytes, facts: list[str]) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with refused(*facts, key="judge.prompt", value=file):
        load_template(str(file))


def test_a_persons_text_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Zu {$prompt}: 1. ${first} 2. $second")
    template = load_template(str(tmp_path / "mine.txt"))
    assert template.substitute(prompt="p", first="a", second="b") == "Zu {p}: 1. a 2. b"


def test_no_such_text_names_the_choices() -> None:
    with refused(key="judge.prompt", value="tdlr", remedy="general, hh, tldr"):
        load_template("tdlr")


def test_a_conversation_is_readable() -> None:
    turns = [{"role": "user", "content": "Hi \n"}, {"role": "assistant", "content": "Yes?"}]
    assert readable(turns) == "User: Hi\n\nAssistant: Yes?"  # type: ignore[arg-type]
    assert readable("\n\nHuman: Hi\n\nAssistant:") == "Human: Hi\n\nAssistant:"


def test_a_digest_changes_with_whatever_changes_the_answer() -> None:
    template = Template("$prompt $first $second")
    one, two = both_orders(Pair("p", "ours", "theirs"), template)
    who = JudgeModel("http://x/v1", "m", {"temperature": 0.0})
    others = [
        two.digest(who),
        one.digest(JudgeModel("http://y/v1", "m", {"temperature": 0.0})),
        one.digest(JudgeModel("http://x/v1", "n", {"temperature": 0.0})),
        one.digest(JudgeModel("http://x/v1", "m", {"temperature": 1.0})),
        both_orders(Pair("q", "ours", "theirs"), template)[0].digest(who),
        both_orders(Pair("p", "ours!", "theirs"), template)[0].digest(who),
        both_orders(Pair("p", "ours", "theirs"), Template("$prompt, $first $second"))[0].digest(who),
    ]
    assert len({one.digest(who), *others}) == 8
    assert one.digest(who) == both_orders(Pair("p", "ours", "theirs"), template)[0].digest(who)
    assert (one.score("A"), one.score("B"), one.score("tie")) == (1.0, 0.0, 0.5)
    assert (two.score("A"), two.score("B"), two.score("tie")) == (0.0, 1.0, 0.5)
