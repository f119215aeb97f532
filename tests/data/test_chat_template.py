"""Rendering pairs: what the policy is prompted with, and what follows it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldpo.data.chat_template import without_token
from caldpo.data.raw_row import RowError
from caldpo.data.template_checks import read_template, require_template
from tests.data.small import chat, pair, rendered, word_tokenizer
from tests.helpers.messages import refused

FILE = {"key": "data.chat_template", "remedy": "data.chat_template=FILE"}


def test_a_conversation_is_rendered_as_prompt_and_response() -> None:
    tokenizer = word_tokenizer()
    texts = rendered(pair(chat("a", "b", "c"), "yes", "no"), tokenizer)
    assert texts.prompt == "user : a <eos> z assistant : b <eos> z user : c <eos> z assistant : "
    assert (texts.chosen, texts.rejected) == ("yes <eos> z ", "no <eos> z ")
    assert texts.templated


def test_plain_text_is_not_rendered_even_with_a_template() -> None:
    texts = rendered(pair("{{ 1 }} user :", " yes", "no"), word_tokenizer())
    assert (texts.prompt, texts.chosen, texts.rejected) == ("{{ 1 }} user :", " yes", "no")
    assert not texts.templated


def test_eos_in_the_responses_own_text_is_taken_out_and_counted() -> None:
    texts = rendered(pair(chat("a <eos>"), "b <eos> c<eos>", "<<eos>eos>d"), word_tokenizer())
    assert texts.eos_stripped == 4  # two, one, and the one that taking it out makes
    assert texts.chosen == "b  c <eos> z "
    assert texts.rejected == "d <eos> z "
    assert "a <eos>" in texts.prompt  # the prompt is not ours to change


@pytest.mark.parametrize(("text", "left", "count"), [("", "", 0), ("xx", "", 1), ("xxx", "x", 1), ("axxb", "ab", 1)])
def test_without_token(text: str, left: str, count: int) -> None:
    assert without_token(text, "xx") == (left, count)


@given(st.text("<e>", max_size=60))
def test_what_is_left_has_no_token_however_they_are_nested(text: str) -> None:
    """As taking them out until there are none, one at a time."""
    left, count = text, 0
    while "<e>" in left:
        left, count = left.replace("<e>", "", 1), count + 1
    assert without_token(text, "<e>") == (left, count)


def test_a_text_made_of_nested_tokens_takes_no_time() -> None:
    started = time.process_time()
    assert without_token("<e" * 200_000 + ">" * 200_000, "<e>") == ("", 200_000)
    assert without_token("a<e>", "") == ("a<e>", 0)
    assert time.process_time() - started < 10


def test_a_template_that_raises_names_its_reason() -> None:
    tokenizer = word_tokenizer(template="{{ raise_exception('only one turn') if messages|length > 2 }}x")
    with refused("chat template", "only one turn", kind=RowError):
        rendered(pair(chat("a", "b", "c"), "yes", "no"), tokenizer)


def test_a_template_that_does_not_continue_its_own_prompt_is_refused_where_they_part() -> None:
    template = "assistant : {{ 'think' if add_generation_prompt else messages[-1].content }}"
    with refused(12, "'yes'", "'think'", "data.chat_template=FILE", kind=RowError):
        rendered(pair(chat("a"), "yes", "no"), word_tokenizer(template=template))


def test_a_conversation_shorter_than_its_prompt_is_refused() -> None:
    template = "{{ 'abc' if add_generation_prompt else 'ab' }}"
    with refused(2, "''", "'c'", "data.chat_template=FILE", kind=RowError):
        rendered(pair(chat("a"), "yes", "no"), word_tokenizer(template=template))


def test_a_template_runs_in_the_sandbox() -> None:
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with refused("sandbox", "'__class__'", "unsafe", **FILE):
        rendered(pair(chat("a"), "yes", "no"), word_tokenizer(template=template))


def test_a_syntax_error_blames_the_template_and_not_the_row() -> None:
    with refused("Jinja", "line 2", **FILE):
        rendered(pair(chat("a"), "yes", "no"), word_tokenizer(template="x\n{% if %}"))


def test_a_tokenizer_without_template_is_refused_with_remedies() -> None:
    tokenizer = word_tokenizer(template=None)
    with refused("conversations", "the policy's tokenizer", **FILE):
        require_template(tokenizer)
    named = word_tokenizer(template=None)
    named.name_or_path = "some/base-model"
    with refused("the policy's tokenizer", "some/base-model", **FILE):
        require_template(named)
    require_template(word_tokenizer())


def test_absurdly_long_templates_are_refused(tmp_path) -> None:
    with refused("400,000 characters", remedy="data.chat_template=FILE"):
        require_template(word_tokenizer(template="x" * 400_000))
    (tmp_path / "long.jinja").write_text("x" * 400_000)
    with refused("more than 200,000 characters", key="data.chat_template", value=tmp_path / "long.jinja"):
        read_template(str(tmp_path / "long.jinja"))


def test_reading_a_template_file(tmp_path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[0].content }} ä", encoding="utf-8")
    assert read_template(str(file)) == "{{ messages[0].content }} ä"
    file.write_bytes(b"\xff\xfe\xff")
    for path in (file, tmp_path / "missing.jinja", tmp_path):
        with refused("cannot be read", key="data.chat_template", value=path, remedy="UTF-8") as caught:
            read_template(str(path))
        assert getattr(caught.value, "value", None) == str(path)
    file.write_text(" \n")
    with refused("2 characters", key="data.chat_template", value=file):
        read_template(str(file))
