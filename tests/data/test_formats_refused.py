"""Rows that a format refuses, each with its reason."""

from __future__ import annotations

import pytest

from caldpo.data.formats import detect, formats
from caldpo.data.raw_row import RowError
from tests.data.format_rows import assistant, system, tldr, uf, user
from tests.helpers.messages import names


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        (uf(rejected="absent"), ("`rejected`", "missing")),
        (uf(rejected=None), ("`rejected`", "null")),
        (uf(rejected=True), ("`rejected`", "list of messages", "boolean")),
        (uf(chosen=[]), ("`chosen`", "empty")),
        (uf(chosen=["Hi?", "Hello."]), ("`chosen`", "messages", "text")),
        (uf(chosen=[user("Hi?"), assistant(None)]), ("`chosen`", "content", "text", "null")),
        (uf(chosen=[user("Hi?"), assistant([{"type": "text"}])]), ("`chosen`", "content", "text", "list")),
        (uf(chosen=[assistant("Hello."), user("Hi?")]), ("`chosen`", "assistant, user")),
        (uf(chosen=[user("Hi?"), user("Hi?"), assistant("Hello.")]), ("`chosen`", "user, user, assistant")),
        (uf(chosen=[user("Hi?"), system("x"), assistant("Hello.")]), ("`chosen`", "user, system, assistant")),
        (uf(chosen=[system("x"), assistant("Hello.")]), ("`chosen`", "user turn", "assistant")),
        (uf(chosen=[system("x")]), ("`chosen`", "assistant turn")),
        (uf(chosen=[user("Hi?"), assistant("Hello."), user("Bye.")]), ("`chosen`", "assistant turn")),
        (uf(chosen=[user(" "), assistant("Hello.")]), ("`chosen`", "user turn", "text")),
        (uf(chosen=[user("Hi?"), {"role": "bot", "content": "x"}]), ("`chosen`", "role", "'bot'")),
        (uf(chosen=[user("Hi?"), {"role": ["assistant"], "content": "x"}]), ("`chosen`", "role", "['assistant']")),
        (uf(chosen=[user("Hi?"), {"content": "x"}]), ("`chosen`", "message", "role")),
        (uf(rejected=[user("Bye?"), assistant("No.")]), ("chosen", "rejected", "different prompts")),
        (uf(prompt="Bye?"), ("`prompt`", "user turn")),
        (uf(prompt=5), ("`prompt`", "text", "number")),
        (uf(score_rejected="absent"), ("score", "`score_rejected`", "missing")),
        (uf(score_chosen=None), ("`score_chosen`", "number", "null")),
        (uf(score_chosen="8.0"), ("`score_chosen`", "number", "text")),
        (uf(score_rejected=False), ("`score_rejected`", "number", "boolean")),
        (uf(score_chosen=float("nan")), ("`score_chosen`", "finite")),
        (uf(score_chosen=float("inf")), ("`score_chosen`", "finite")),
        (uf(score_chosen=10**400), ("`score_chosen`", "finite")),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
            ("chosen", "rejected", "different prompts"),
        ),
        (
            # the dialogues part at an earlier turn: a slice at the chosen prompt's length would be garbage
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                "rejected": "\n\nHuman: a\n\nAssistant: e",
            },
            ("chosen", "rejected", "different prompts"),
        ),
        (
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
                "rejected": "\n\nHuman: a\n\nAssistant: b",
            },
            ("`chosen`", "ends", "human turn"),
        ),
        (
            {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"},
            ("`chosen`", "no", "assistant turn"),
        ),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, ("`chosen`", "no", "human turn")),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, ("`rejected`", "missing")),
        (tldr(choice=2), ("`choice`", 0, 1, 2)),
        (tldr(choice=True), ("`choice`", 0, 1, True)),
        (tldr(choice=[]), ("`choice`", 0, 1, [])),
        (tldr(summaries=[{"text": "a"}]), ("`summaries`", "two")),
        (tldr(summaries=["a", "b"]), ("`summaries`", "objects", "text")),
        (tldr(info="post"), ("`info`", "object", "text")),
        (tldr(info={"post": "p", "title": None, "subreddit": "r"}), ("`title`", "null")),
        (
            {"prompt": "Q", "chosen": '[{"role": "user", "content": "Q"}]', "rejected": "b"},
            ("`chosen`", "conversation", "text"),
        ),
        ({"prompt": "Q", "chosen": "a", "rejected": 3}, ("`rejected`", "text", "number")),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, ("`prompt`", "text", "number")),
        ({"chosen": "Just some text.", "rejected": "Other text."}, ("`prompt`", "chosen", "rejected")),
        (
            {"prompt": [user("Hi?")], "chosen": [user("Hi?"), assistant("a")], "rejected": [assistant("b")]},
            ("`chosen`", "one assistant message", "user, assistant"),
        ),
        (
            {"prompt": [user("Hi?")], "chosen": [user("a")], "rejected": [assistant("b")]},
            ("`chosen`", "one assistant message", "user"),
        ),
        (
            {"prompt": [user("Hi?")], "chosen": "a", "rejected": "b"},
            ("`chosen`", "list of messages", "text"),
        ),
        (
            {
                "prompt": [user("Hi?"), assistant("a")],
                "chosen": [assistant("a")],
                "rejected": [assistant("b")],
            },
            ("`prompt`", "user turn"),
        ),
        (
            {"text": "a review", "label": 1},
            ("label, text", "labelled_conversation", "`messages`", "data.columns.prompt=NAME"),
        ),
        ({"instruction": "i", "output_1": "a", "output_2": "b"}, ("alpaca_farm", "`preference`", "output_1")),
        ({"data": [{"prompt": "q", "chosen": "a", "rejected": "b"}]}, ("one object", "'data'", "list")),
        ({}, ("none", "data.columns.prompt=NAME")),
    ],
)
def test_refuses_with_a_reason(row, facts):
    with pytest.raises(RowError) as caught:
        formats()[detect(row)].parse(row)
    names(caught.value.reason, *facts)
    assert caught.value.kind == "row"


def test_cnn_articles_are_filtered_and_not_faulty():
    """Raw and parquet rows of CNN/DailyMail: no subreddit and post there, nulls here."""
    raw = {"id": "c", "article": "(CNN) News.", "title": "News", "site": "cnn"}
    for info in (raw, raw | {"post": None, "subreddit": None}):
        row = tldr(info=info)
        with pytest.raises(RowError) as caught:
            formats()[detect(row)].parse(row)
        assert caught.value.kind == "filtered"
