"""Rows that a format refuses, each with its reason."""

from __future__ import annotations

import pytest

from caldpo.data.formats import detect, formats
from caldpo.data.raw_row import RowError
from tests.data.format_rows import assistant, system, tldr, uf, user


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (uf(rejected="absent"), "column `rejected` is missing"),
        (uf(rejected=None), "`rejected` is null"),
        (uf(rejected=True), "`rejected` is not a list of messages (but a boolean)"),
        (uf(chosen=[]), "`chosen` is an empty list"),
        (uf(chosen=["Hi?", "Hello."]), "`chosen` holds something else than messages (text)"),
        (uf(chosen=[user("Hi?"), assistant(None)]), "whose content is not text (but null)"),
        (uf(chosen=[user("Hi?"), assistant([{"type": "text"}])]), "whose content is not text (but a list)"),
        (uf(chosen=[assistant("Hello."), user("Hi?")]), "does not alternate"),
        (uf(chosen=[user("Hi?"), user("Hi?"), assistant("Hello.")]), "does not alternate"),
        (uf(chosen=[user("Hi?"), system("x"), assistant("Hello.")]), "does not alternate"),
        (uf(chosen=[system("x"), assistant("Hello.")]), "does not alternate"),
        (uf(chosen=[system("x")]), "does not end with an assistant turn"),
        (uf(chosen=[user("Hi?"), assistant("Hello."), user("Bye.")]), "does not end with an assistant turn"),
        (uf(chosen=[user(" "), assistant("Hello.")]), "a user turn without text"),
        (uf(chosen=[user("Hi?"), {"role": "bot", "content": "x"}]), "unknown role ('bot')"),
        (uf(chosen=[user("Hi?"), {"role": ["assistant"], "content": "x"}]), "unknown role"),
        (uf(chosen=[user("Hi?"), {"content": "x"}]), "a message without a role"),
        (uf(rejected=[user("Bye?"), assistant("No.")]), "answer different prompts"),
        (uf(prompt="Bye?"), "`prompt` is no user turn"),
        (uf(prompt=5), "`prompt` is not text (but a number)"),
        (uf(score_rejected="absent"), "one score without the other (`score_rejected` is missing)"),
        (uf(score_chosen=None), "`score_chosen` is not a number (but null)"),
        (uf(score_chosen="8.0"), "`score_chosen` is not a number (but text)"),
        (uf(score_rejected=False), "`score_rejected` is not a number (but a boolean)"),
        (uf(score_chosen=float("nan")), "`score_chosen` is not finite"),
        (uf(score_chosen=float("inf")), "`score_chosen` is not finite"),
        (uf(score_chosen=10**400), "`score_chosen` is not finite"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
            "different prompts",
        ),
        (
            # the dialogues part at an earlier turn: a slice at the chosen prompt's length would be garbage
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                "rejected": "\n\nHuman: a\n\nAssistant: e",
            },
            "different prompts",
        ),
        (
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
                "rejected": "\n\nHuman: a\n\nAssistant: b",
            },
            "`chosen` ends with a human turn",
        ),
        (
            {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"},
            "`chosen` has no assistant turn",
        ),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "`chosen` has no human turn"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, "column `rejected` is missing"),
        (tldr(choice=2), "`choice` is neither 0 nor 1"),
        (tldr(choice=True), "`choice` is neither 0 nor 1"),
        (tldr(choice=[]), "`choice` is neither 0 nor 1"),
        (tldr(summaries=[{"text": "a"}]), "not a list of two"),
        (tldr(summaries=["a", "b"]), "`summaries` holds something else than objects (text)"),
        (tldr(info="post"), "`info` is not an object"),
        (tldr(info={"post": "p", "title": None, "subreddit": "r"}), "`title` is null"),
        (
            {"prompt": "Q", "chosen": '[{"role": "user", "content": "Q"}]', "rejected": "b"},
            "`chosen` is a conversation encoded as text",
        ),
        ({"prompt": "Q", "chosen": "a", "rejected": 3}, "`rejected` is not text (but a number)"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "`prompt` is not text (but a number)"),
        ({"chosen": "Just some text.", "rejected": "Other text."}, "share no beginning"),
        (
            {"prompt": [user("Hi?")], "chosen": [user("Hi?"), assistant("a")], "rejected": [assistant("b")]},
            "`chosen` must hold one assistant message (user, assistant)",
        ),
        (
            {"prompt": [user("Hi?")], "chosen": [user("a")], "rejected": [assistant("b")]},
            "one assistant message",
        ),
        (
            {"prompt": [user("Hi?")], "chosen": "a", "rejected": "b"},
            "`chosen` is not a list of messages (but text)",
        ),
        (
            {
                "prompt": [user("Hi?"), assistant("a")],
                "chosen": [assistant("a")],
                "rejected": [assistant("b")],
            },
            "`prompt` does not end with a user turn",
        ),
        ({"text": "a review", "label": 1}, "no known format (columns: label, text;"),
        ({}, "no known format (columns: none;"),
    ],
)
def test_refuses_with_a_reason(row, reason):
    with pytest.raises(RowError) as caught:
        formats()[detect(row)].parse(row)
    assert reason in caught.value.reason
    assert caught.value.kind == "row"


def test_cnn_articles_are_filtered_and_not_faulty():
    """Raw and parquet rows of CNN/DailyMail: no subreddit and post there, nulls here."""
    raw = {"id": "c", "article": "(CNN) News.", "title": "News", "site": "cnn"}
    for info in (raw, raw | {"post": None, "subreddit": None}):
        row = tldr(info=info)
        with pytest.raises(RowError) as caught:
            formats()[detect(row)].parse(row)
        assert caught.value.kind == "filtered"
