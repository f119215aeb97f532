"""Special tokens in the data's own text stay text; those of a template are tokens."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caldpo.data.special_text import SpecialText
from caldpo.data.tokenize import encode_prompt
from tests.data.small import (
    byte_tokenizer,
    chat,
    gpt2,
    letter_tokenizer,
    pair,
    rendered,
    tokenized,
    word_tokenizer,
    zephyr,
)
from tests.helpers.messages import names

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ':' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
STRUCK = "Write <s>four</s> in HTML."


@pytest.mark.parametrize("make", [byte_tokenizer, zephyr])
def test_html_in_a_conversation_is_text(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make()
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    split = tokenized([pair(chat(STRUCK), STRUCK, "Write *four*.")], tokenizer)
    [only] = split.pairs
    for text_ids in (only.chosen_ids[:-1], only.rejected_ids[:-1]):
        assert not {bos, eos} & set(text_ids)
    assert [only.prompt_ids.count(bos), only.prompt_ids.count(eos)] == [1, 1]
    whole = tokenizer.decode(only.prompt_ids + only.chosen_ids)
    assert whole.replace(" ", "") == f"<s>user:{STRUCK}</s>\nassistant:{STRUCK}</s>".replace(" ", "")
    assert (split.counts.special_as_text, split.counts.eos_stripped) == (1, 0)
    assert encode_prompt(chat(STRUCK), tokenizer) == only.prompt_ids


def test_text_prompts_and_their_responses() -> None:
    tokenizer = byte_tokenizer()
    split = tokenized([pair("Strike four:", f" {STRUCK}", " no")], tokenizer)
    assert tokenizer.decode(split.pairs[0].chosen_ids) == f" {STRUCK}</s>"
    assert split.pairs[0].chosen_ids.count(1) == 0
    # a prompt that somebody's own template wrote: its special tokens are meant
    split = tokenized([pair("<s>user: a</s>assistant:", "b</s>", "c")], tokenizer)
    assert [split.pairs[0].prompt_ids.count(special) for special in (1, 2)] == [1, 1]
    assert split.pairs[0].chosen_ids == [*tokenizer("b")["input_ids"], 2]
    assert (split.counts.special_in_prompts, split.counts.eos_stripped) == (1, 1)


def test_an_eos_at_the_end_is_stripped_except_in_html() -> None:
    tokenizer = byte_tokenizer(template=TEMPLATE)
    split = tokenized([pair(chat("a"), "b</s></s>\n", "c <s>d</s>")], tokenizer)
    [only] = split.pairs
    assert split.counts.eos_stripped == 2
    assert tokenizer.decode(only.chosen_ids) == "b</s>"
    assert tokenizer.decode(only.rejected_ids) == "c <s>d</s></s>"
    assert only.rejected_ids.count(2) == 1


def test_an_endless_row_of_eos_takes_no_time() -> None:
    started = time.process_time()
    texts = rendered(pair("a", "b" + " </s>" * 200_000, "c"), byte_tokenizer())
    assert (texts.chosen, texts.eos_stripped) == ("b ", 200_000)
    assert time.process_time() - started < 10


def test_a_token_that_is_a_word_of_the_vocabulary_cannot_stay_text() -> None:
    split = tokenized([pair(chat("a"), "b <bos> c", "d")], word_tokenizer())
    [left] = split.rejections
    names(left.reason, "response", "special token", "<bos>")


parts = st.lists(st.sampled_from(["a", " b", "<s>", "</s>", "\n", "  ", "é", "<think>", "yes"]), max_size=8)


@pytest.mark.parametrize("make", [byte_tokenizer, letter_tokenizer, zephyr, gpt2])
@settings(max_examples=60, deadline=None)
@given(parts=parts)
def test_without_marks_the_ids_are_the_tokenizers_own(make: Any, parts: list[str]) -> None:
    tokenizer = make()
    text = "".join(parts)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert SpecialText(tokenizer).encode(text, "\ue000") == expected


@given(text=st.lists(st.sampled_from(["<", "s", ">", "/", "<s>", "</s>", "\ue000"]), max_size=12).map("".join))
def test_a_marked_text_has_no_token_and_is_itself_without_the_mark(text: str) -> None:
    special = SpecialText(byte_tokenizer())
    mark = special.mark_for(text)
    marked = special.marked({"a": [text]}, mark)["a"][0]
    assert bool(mark) == bool(re.search("</?s>", text))
    assert not special.spelled_out(marked) or not mark
    assert (marked.replace(mark, "") if mark else marked) == text
