"""Each format's rows and the pairs they must give; what each refuses; and that formats never overlap."""

from __future__ import annotations

import itertools
import sys

import pytest

import caldpo.data.formats as package
from caldpo.data.formats import detect, formats
from caldpo.data.formats.hh import split_transcript
from caldpo.data.formats.trl_standard import common_prompt
from caldpo.data.pair import PreferencePair
from caldpo.data.rows import RowError


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def uf(**changes):
    row = {
        "prompt": "Hi?",
        "prompt_id": "0",
        "chosen": [user("Hi?"), assistant("Hello.")],
        "rejected": [user("Hi?"), assistant("No.")],
        "messages": [],
        "score_chosen": 8.0,
        "score_rejected": 4,
    }
    return {k: v for k, v in (row | changes).items() if v != "absent"}


def tldr(**changes):
    row = {
        "info": {"id": "t3", "post": "I lost it.", "title": "Help", "subreddit": "tifu", "article": None},
        "summaries": [{"text": " Lost.", "policy": "a"}, {"text": "Found it \n", "policy": "b"}],
        "choice": 1,
        "worker": "w",
        "extra": {"confidence": 8},
    }
    return row | changes


HI = (user("Hi?"),)
EXAMPLES = [
    ("ultrafeedback", uf(), PreferencePair(HI, "Hello.", "No.", 8.0, 4.0)),
    ("ultrafeedback", uf(prompt="absent"), PreferencePair(HI, "Hello.", "No.", 8.0, 4.0)),
    (
        "ultrafeedback",
        uf(prompt_id="absent", messages="absent"),
        PreferencePair(HI, "Hello.", "No.", 8.0, 4.0),
    ),
    (
        "ultrafeedback",
        uf(
            prompt="Hi? ",
            chosen=[system("Be kind."), user("Hi?"), assistant("Yes?"), user("Well?"), assistant("A")],
            rejected=[system("Be kind."), user("Hi?"), assistant("Yes?"), user("Well?"), assistant("B")],
            score_chosen="absent",
            score_rejected="absent",
        ),
        PreferencePair((system("Be kind."), user("Hi?"), assistant("Yes?"), user("Well?")), "A", "B"),
    ),
    (
        "hh",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e\n\nf",
        },
        PreferencePair("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " d", " e\n\nf"),
    ),
    (
        "tldr",
        tldr(),
        PreferencePair("SUBREDDIT: r/tifu\nTITLE: Help\nPOST: I lost it.\nTL;DR:", " Found it", " Lost."),
    ),
    (
        "trl_standard",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        PreferencePair("The sky is", " blue.", " green."),
    ),
    (
        "trl_standard",
        {
            "prompt": "Q",
            "prompt_id": 7,
            "chosen": "a",
            "rejected": "b",
            "score_chosen": 1,
            "score_rejected": 0,
        },
        PreferencePair("Q", "a", "b", 1.0, 0.0),
    ),
    (
        "trl_standard",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        PreferencePair("The sky is", " blue.", " green."),
    ),
    (
        "trl_conversational",
        {"prompt": [user("Hi?")], "chosen": [assistant("Hello.")], "rejected": [assistant("No.")]},
        PreferencePair(HI, "Hello.", "No."),
    ),
    (
        "trl_conversational",
        {"chosen": [user("Hi?"), assistant("Hello.")], "rejected": [user("Hi?"), assistant("No.")]},
        PreferencePair(HI, "Hello.", "No."),
    ),
]


@pytest.mark.parametrize(("name", "row", "pair"), EXAMPLES)
def test_parses(name, row, pair):
    assert detect(row) == name
    assert formats()[name].parse(row) == pair


def test_every_format_has_an_example():
    assert {name for name, _, _ in EXAMPLES} == set(formats())


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


def test_blank_summary_stays_blank():
    """The leading space alone must not make an empty summary look like text."""
    row = tldr(summaries=[{"text": "  "}, {"text": "b"}])
    assert formats()["tldr"].parse(row).rejected == ""


def test_hh_parts_join_to_the_transcript():
    transcript = "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c  "
    prompt, response = split_transcript(transcript, "chosen")
    assert prompt + response == transcript
    assert response == " c  "


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is"),  # the longest common text ends within a word
        ("A:\nyes", "A:\nno", "A:\n"),  # a line break belongs to the prompt
        ("One two, three", "One two three", "One two"),  # punctuation ends a word
        ("The sky is", "The sky is blue", "The sky"),  # one continues the other: both keep some text
        ("same words", "same words", "same"),
        ("天空是蓝色", "天空是红色", "天空是"),  # no spaces: cut between characters
        ("a b", "c d", ""),
        ("", "x", ""),
    ],
)
def test_implicit_prompt(chosen, rejected, prompt):
    assert common_prompt(chosen, rejected) == prompt
    assert common_prompt(rejected, chosen) == prompt


def test_no_row_has_two_formats():
    """Every combination of what the columns may hold matches at most one format."""
    sides = ["absent", None, 1, "text", "\n\nHuman: a\n\nAssistant: b", [], [user("a"), assistant("b")]]
    prompts = ["absent", None, 1, "text", [user("a")]]
    others = [{}, {"prompt_id": "x"}, {"summaries": [], "info": {}}, {"summaries": []}, {"messages": []}]
    for prompt, chosen, rejected, other in itertools.product(prompts, sides, sides, others):
        columns = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **other}
        row = {k: v for k, v in columns.items() if v != "absent"}
        assert sum(module.matches(row) for module in formats().values()) <= 1, row


def test_a_new_file_is_a_new_format(tmp_path, monkeypatch):
    """The recipe: one file, found by being there; and one that matches too much is named, not obeyed."""
    (tmp_path / "ranked.py").write_text(
        "from caldpo.data.pair import PreferencePair\n"
        "def matches(row): return 'ranking' in row\n"
        "def parse(row): return PreferencePair(row['q'], row['ranking'][0], row['ranking'][-1])\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    formats.cache_clear()
    try:
        row = {"q": "Q", "ranking": ["a", "b", "c"]}
        assert detect(row) == "ranked"
        assert formats()["ranked"].parse(row) == PreferencePair("Q", "a", "c")
        with pytest.raises(RowError, match=r"several formats \(ranked, ultrafeedback\)"):
            detect(uf() | {"ranking": []})
    finally:
        sys.modules.pop("caldpo.data.formats.ranked", None)
        formats.cache_clear()
