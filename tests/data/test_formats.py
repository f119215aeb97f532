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
from caldpo.data.ranked import RankedResponses
from caldpo.data.raw_row import RowError
from tests.data.format_rows import assistant, system, tldr, uf, user
from tests.helpers.messages import refused

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
        "alpaca_farm",
        {"instruction": "Add.", "input": "2 and 2", "output_1": "5", "output_2": "4", "preference": 2},
        PreferencePair("Add.\n\n2 and 2", "4", "5"),
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
    (
        "prompt_completion",
        {"prompt": "The sky is", "completion": " blue."},
        PreferencePair("The sky is", " blue.", "", demonstration=True),
    ),
    (
        "prompt_completion",
        {"prompt": [user("Hi?")], "completion": [assistant("Hello.")]},
        PreferencePair(HI, "Hello.", "", demonstration=True),
    ),
    (
        "conversation",
        {"prompt": "Hi?", "prompt_id": "0", "messages": [user("Hi?"), assistant("A"), user("B"), assistant("C")]},
        PreferencePair((user("Hi?"), assistant("A"), user("B")), "C", "", demonstration=True),
    ),
    (
        "tldr_sft",
        {"id": "1", "subreddit": "tifu", "title": "Help", "post": "I lost it.", "summary": "Lost it. "},
        PreferencePair("SUBREDDIT: r/tifu\nTITLE: Help\nPOST: I lost it.\nTL;DR:", " Lost it.", "", demonstration=True),
    ),
    (
        "unpaired",
        {"prompt": "The sky is", "completion": " blue.", "label": True},
        PreferencePair("The sky is", " blue.", "", label=True),
    ),
    (
        "unpaired",
        {"prompt": [user("Hi?")], "completion": [assistant("No.")], "label": False},  # as trl-lib/kto-mix-14k
        PreferencePair(HI, "", "No.", label=False),
    ),
    (
        "unpaired",  # as argilla/kto-mix-15k
        {"prompt": "Hi?", "completion": [user("Hi?"), assistant("No.")], "label": 0, "rating": 1.0},
        PreferencePair(HI, "", "No.", label=False),
    ),
    (
        "labelled_conversation",
        {"messages": [user("Hi?"), assistant("A"), user("B"), assistant("C")], "label": 1},
        PreferencePair((user("Hi?"), assistant("A"), user("B")), "C", "", label=True),
    ),
    (
        "nectar",
        {
            "prompt": "\n\nHuman: Hi?\n\nAssistant: ",
            "answers": [{"answer": "No.", "rank": 2.0, "model": "m"}, {"answer": "Hello.", "rank": 1.0, "model": "n"}],
        },
        RankedResponses("\n\nHuman: Hi?\n\nAssistant:", [" No.", " Hello."], [-2.0, -1.0]),
    ),
    (
        "ultrafeedback_completions",
        {
            "instruction": "Hi?",
            "completions": [{"response": "No.", "overall_score": 2.5}, {"response": "Hello.", "overall_score": 8}],
        },
        RankedResponses(HI, [assistant("No."), assistant("Hello.")], [2.5, 8.0], scored=True),
    ),
    (
        "ranked_list",
        {"prompt": "The sky is", "responses": [" blue.", " green."], "scores": [0.5, -1]},
        RankedResponses("The sky is", [" blue.", " green."], [0.5, -1.0], scored=True),
    ),
    (
        "ranked_list",
        {"prompt": [user("Hi?")], "responses": [[assistant("No.")], "Hello."], "ranks": [2, 1]},
        RankedResponses(HI, [assistant("No."), assistant("Hello.")], [-2.0, -1.0]),
    ),
    (
        "several_rejected",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": [" green.", " red."]},
        RankedResponses("The sky is", [" blue.", " green.", " red."], [1.0, 0.0, 0.0]),
    ),
    (
        "several_rejected",
        {
            "prompt": "Hi?",
            "chosen": [assistant("Hello.")],
            "rejected": [[assistant("No.")], [assistant("Go.")]],
            "score_chosen": 3,
            "score_rejected": [1, 2],
        },
        RankedResponses(HI, [assistant("Hello."), assistant("No."), assistant("Go.")], [3.0, 1.0, 2.0], scored=True),
    ),
]


@pytest.mark.parametrize(("name", "row", "pair"), EXAMPLES)
def test_parses(name, row, pair):
    assert detect(row) == name
    assert formats()[name].parse(row) == pair
    assert set(formats()[name].COLUMNS) <= set(row)


def test_every_format_has_an_example():
    assert {name for name, _, _ in EXAMPLES} == set(formats())


def test_blank_summary_stays_blank():
    """The leading space alone must not make an empty summary look like text."""
    row = tldr(summaries=[{"text": "  "}, {"text": "b"}])
    assert formats()["tldr"].parse(row).rejected == ""


def test_a_response_that_was_judged_is_not_imitated():
    """TRL's unpaired preferences have a label beside the completion, which may be a bad one."""
    for row in ({"prompt": "Q", "completion": "Bah."}, {"messages": [user("Q"), assistant("Bah.")]}):
        assert formats()[detect(row)].parse(row).demonstration
        labelled = formats()[detect(row | {"label": False})].parse(row | {"label": False})
        assert (labelled.demonstration, labelled.chosen, labelled.rejected) == (False, "", "Bah.")


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"prompt": [user("Hi?")], "completion": [user("Hello.")]}, ("`completion`", "one assistant turn")),
        ({"prompt": "Hi?", "completion": [assistant("Hello.")]}, ("`completion`", "text", "list")),
        ({"messages": [user("Hi?")]}, ("`messages`", "assistant turn")),
        ({"post": "x", "summary": "y", "title": None, "subreddit": "z"}, ("`title`", "null")),
    ],
)
def test_rows_that_are_no_demonstrations(row, facts):
    with refused(*facts, kind=RowError):
        formats()[detect(row)].parse(row)


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
    others += [{"completion": "x"}, {"completion": [], "messages": []}, {"post": "x", "summary": "y"}]
    others += [{"post": "x", "summary": "y", "messages": [], "completion": "z"}, {"completion": "x", "label": False}]
    others += [{"messages": [], "label": 1}, {"messages": [], "completion": "x", "label": 1}, {"answers": []}]
    others += [{"completions": []}, {"responses": []}, {"responses": [], "completions": [], "answers": [], "label": 1}]
    sides += [["text", "other"], [[user("a")], [user("b")]]]
    for prompt, chosen, rejected, other in itertools.product(prompts, sides, sides, others):
        columns = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **other}
        row = {k: v for k, v in columns.items() if v != "absent"}
        assert sum(module.matches(row) for module in formats().values()) <= 1, row


def test_a_new_file_is_a_new_format(tmp_path, monkeypatch):
    """The recipe: one file, found by being there; and one that matches too much is named, not obeyed."""
    (tmp_path / "ranked.py").write_text(
        "from caldpo.data.pair import PreferencePair\n"
        "COLUMNS = ('q', 'ranking')\n"
        "def matches(row): return 'ranking' in row\n"
        "def parse(row): return PreferencePair(row['q'], row['ranking'][0], row['ranking'][-1])\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    formats.cache_clear()
    try:
        row = {"q": "Q", "ranking": ["a", "b", "c"]}
        assert detect(row) == "ranked"
        assert formats()["ranked"].parse(row) == PreferencePair("Q", "a", "c")
        with refused("ranked, ultrafeedback", kind=RowError):
            detect(uf() | {"ranking": []})
    finally:
        sys.modules.pop("caldpo.data.formats.ranked", None)
        formats.cache_clear()
