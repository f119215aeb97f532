"""Token ids of pairs, checked token by token."""

from __future__ import annotations

import string
from typing import Any

import pytest
from tokenizers import processors

from caldpo.data.data_report import TokenCounts
from caldpo.data.special_text import SpecialText, encode_continuation
from caldpo.data.tokenize import end_once, leading_special_tokens
from tests.data.small import (
    byte_tokenizer,
    chat,
    gpt2,
    gpt2_with,
    ids,
    letter_tokenizer,
    pair,
    tokenized,
    word_tokenizer,
    zephyr,
)
from tests.helpers.messages import names, refused


def test_words_in_a_conversation() -> None:
    tokenizer = word_tokenizer()
    split = tokenized([pair(chat("a ?"), "yes b", "no", origin="f:7")], tokenizer)
    [only] = split.pairs
    assert only.prompt_ids == ids(tokenizer, "user : a ? <eos> z assistant :")
    assert only.chosen_ids == ids(tokenizer, "yes b <eos>")  # the template's z after EOS is cut
    assert only.rejected_ids == ids(tokenizer, "no <eos>")
    assert (only.index, only.origin) == (0, "f:7")
    assert split.counts == TokenCounts()
    assert split.rejections == []


def test_zephyr_token_by_token() -> None:
    """Written by hand from the template: no BOS, one EOS, the newline after it gone. Its pad token is EOS."""
    tokenizer = zephyr()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    [only] = tokenized([pair(chat("Hi"), "Yo", "Hey there\n")], tokenizer).pairs
    turn = "▁< | user | > <0x0A> Hi </s> <0x0A>"
    header = "< | ass istant | > <0x0A>"
    assert only.prompt_ids == ids(tokenizer, f"{turn} {header}")
    assert only.chosen_ids == ids(tokenizer, "Y o </s>") == [28802, 28709, 2]
    assert only.rejected_ids == ids(tokenizer, "Hey ▁there <0x0A> </s>")


def test_a_template_with_bos_in_the_manner_of_llama_3() -> None:
    """BOS once although the tokenizer would add one as well; the end-of-turn token is EOS.

    GPT-2 makes one token of a blank line at the end of a text and two of one before a word. So the prompt
    alone ends in one token, which is what generation sees, and both responses are tokenised apart.
    """
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m.role + '<|end|>\n\n' + m.content | trim }}"
        "{{ '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
    )
    tokenizer = gpt2_with(eos_token="<|eot|>", additional_special_tokens=["<|start|>", "<|end|>"])
    tokenizer.chat_template = template
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id  # it does add one
    split = tokenized([pair(chat(" Hi "), "Yo man ", "No")], tokenizer)
    [only] = split.pairs
    user, header = "<|start|> user <|end|> Ċ Ċ Hi <|eot|>", "<|start|> ass istant <|end|> ĊĊ"
    assert only.prompt_ids == ids(tokenizer, f"<|endoftext|> {user} {header}")
    assert split.counts == TokenCounts(boundary_merges=2)
    assert only.chosen_ids == ids(tokenizer, "Yo Ġman <|eot|>")
    assert only.rejected_ids == ids(tokenizer, "No <|eot|>")


@pytest.mark.parametrize("prompt", ["a ?", "<bos> a ?"])
def test_plain_text_gets_the_tokenizers_bos_once_and_no_eos_between(prompt: str) -> None:
    tokenizer = word_tokenizer(bos=True)
    assert tokenizer("a ?")["input_ids"] == ids(tokenizer, "<bos> a ? <eos>")  # what it would do by itself
    [only] = tokenized([pair(prompt, " yes", " no")], tokenizer).pairs
    assert only.prompt_ids == ids(tokenizer, "<bos> a ?")
    assert only.chosen_ids == ids(tokenizer, "yes <eos>")


def test_plain_text_gets_no_bos_from_a_tokenizer_that_adds_none() -> None:
    tokenizer = zephyr()
    [only] = tokenized([pair("\n\nHuman: Hi\n\nAssistant:", " Yo", " No")], tokenizer).pairs
    assert tokenizer.bos_token_id not in only.prompt_ids
    assert only.prompt_ids == tokenizer("\n\nHuman: Hi\n\nAssistant:")["input_ids"]
    assert only.chosen_ids == ids(tokenizer, "▁Y o </s>")


def test_leading_special_tokens() -> None:
    assert leading_special_tokens(word_tokenizer(bos=True)) == [1]
    assert leading_special_tokens(word_tokenizer()) == []


def test_a_token_across_the_boundary_is_counted_and_the_prompt_keeps_its_own() -> None:
    tokenizer = letter_tokenizer()
    assert tokenizer.tokenize("a: yes") == [
        "▁",
        "a",
        ":",
        "▁y",
        "e",
        "s",
    ]  # the space belongs to the response here
    assert tokenizer.tokenize("yes") == ["▁y", "e", "s"]  # and here it comes from nowhere
    split = tokenized([pair("a: ", "yes", "no")], tokenizer)
    [only] = split.pairs
    assert only.prompt_ids == ids(tokenizer, "▁ a : ▁")
    assert only.chosen_ids == ids(tokenizer, "y e s <eos>")
    assert only.rejected_ids == ids(tokenizer, "n o <eos>")
    assert split.counts == TokenCounts(boundary_merges=1)
    assert tokenizer.decode(only.prompt_ids + only.chosen_ids[:-1]) == "a: yes"


@pytest.mark.parametrize("response", ["Yes", " Yes", "\nYes", "  Yes", "ly good"])
@pytest.mark.parametrize("prompt", ["Answer: ", "Answer:", "Answer:\n", "Say real"])
@pytest.mark.parametrize("make", [zephyr, gpt2])
def test_prompt_and_response_always_spell_the_whole_text(make: Any, prompt: str, response: str) -> None:
    tokenizer = make()
    [only] = tokenized([pair(prompt, response, "other")], tokenizer).pairs
    assert only.prompt_ids == tokenizer(prompt)["input_ids"]
    text = tokenizer.decode(only.prompt_ids + only.chosen_ids[:-1], clean_up_tokenization_spaces=False)
    assert text == prompt + response


def test_a_continuation_has_no_space_of_its_own() -> None:
    tokenizer = zephyr()
    assert encode_continuation(SpecialText(tokenizer).encode_all, "Yes") == ids(tokenizer, "Yes")
    assert encode_continuation(SpecialText(tokenizer).encode_all, " Yes") == ids(tokenizer, "▁Yes")
    assert encode_continuation(SpecialText(tokenizer).encode_all, "\nYes") == ids(tokenizer, "<0x0A> Yes")
    assert encode_continuation(SpecialText(gpt2()).encode_all, "\n\n") == ids(
        gpt2(), "ĊĊ"
    )  # which would merge with a newline before it


def test_every_response_has_one_eos_and_other_eos_are_counted() -> None:
    tokenizer = word_tokenizer()
    rows = [
        pair(chat("a"), "b <eos> c <eos>", "d"),
        pair("a", " b <eos> c", " d<eos>"),
        pair("a", " e", "<eos>"),
    ]
    split = tokenized(rows, tokenizer)
    assert [p.chosen_ids for p in split.pairs] == [ids(tokenizer, t) for t in ("b c <eos>", "b c <eos>", "e <eos>")]
    assert [p.rejected_ids for p in split.pairs] == [ids(tokenizer, t) for t in ("d <eos>", "d <eos>", "<eos>")]
    assert split.counts == TokenCounts(eos_stripped=5)


def test_a_template_that_writes_no_eos_gets_one_and_is_counted() -> None:
    tokenizer = word_tokenizer(template="{% for m in messages %}{{ m.content + ' z ' }}{% endfor %}")
    split = tokenized([pair(chat("a"), "b", "c d")], tokenizer)
    assert split.pairs[0].chosen_ids == ids(tokenizer, "b z <eos>")
    assert split.counts == TokenCounts(eos_appended=2)


def test_a_template_that_ends_a_turn_with_a_token_of_its_own() -> None:
    """A response ends with that token, as its samples do; the EOS that follows in some templates is cut."""
    tokenizer = word_tokenizer(
        template="{% for m in messages %}{{ m.role + ' : ' + m.content + ' <turn> z ' }}{% endfor %}"
        "{{ eos_token if not add_generation_prompt else 'assistant : ' }}"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    rows = [pair(chat("a"), "b", "n o <turn>"), pair("a", " e", " b"), pair(chat("a"), "b", "n <turn> o")]
    split = tokenized(rows, tokenizer)
    ends = [ids(tokenizer, "user : a <turn> z assistant :"), ids(tokenizer, "a")]
    assert [p.prompt_ids for p in split.pairs] == ends
    assert [p.chosen_ids for p in split.pairs] == [ids(tokenizer, t) for t in ("b <turn>", "e <eos>")]
    assert split.pairs[0].rejected_ids == ids(tokenizer, "n o <turn>")
    assert split.counts.eos_stripped == 1
    assert ["<turn>" in rejection.reason for rejection in split.rejections] == [True]  # its text cannot stay text here


@pytest.mark.parametrize(
    ("given_ids", "templated", "expected"),
    [
        ([5, 2, 7], True, [5, 2]),
        ([5, 2, 7, 2], True, [5, 2]),
        ([5], True, [5, 2]),
        ([], True, [2]),
        ([5, 2, 7, 2], False, [5, 7, 2]),
        ([], False, [2]),
    ],
)
def test_end_once(given_ids: list[int], templated: bool, expected: list[int]) -> None:
    assert end_once(given_ids, 2, templated=templated) == expected


def test_a_text_that_a_template_wrote_beforehand_ends_with_the_end_of_a_turn() -> None:
    tokenizer = byte_tokenizer(
        template="{% for m in messages %}{{ '<start>' + m.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}<start>{% endif %}"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start>", "<end>"]})
    [only] = tokenized([pair("<start>a<end><start>", "b<end>\n", "c<end></s>")], tokenizer).pairs
    assert [tokenizer.decode(side) for side in (only.chosen_ids, only.rejected_ids)] == ["b<end>", "c<end>"]
    [only] = tokenized([pair("a", " b<end>", " c")], tokenizer).pairs  # nobody's template: text
    assert only.chosen_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<end>") not in only.chosen_ids


def test_pairs_of_the_same_tokens_can_be_kept() -> None:
    rows = [pair("a", " yes", "  yes "), pair("a", " b", " c")]
    kept = tokenized(rows, word_tokenizer(), on_degenerate="keep")
    assert len(kept.pairs) == 2
    assert kept.pairs[0].chosen_ids == kept.pairs[0].rejected_ids
    assert kept.counts == TokenCounts(identical=1)
    dropped = tokenized(rows, word_tokenizer())
    [rejection] = dropped.rejections
    names(rejection.reason, "chosen", "rejected", "same tokens")
    assert [p.origin for p in dropped.pairs] == ["data:1"]


def test_conversations_a_template_refuses_are_reported_with_their_origin() -> None:
    tokenizer = word_tokenizer(
        template="{{ raise_exception('no b') if messages[0].content == 'b' }}{{ messages|length }}"
    )
    rows = [pair(chat("a"), "c", "d", "f:1"), pair(chat("b"), "c", "d", "f:2"), pair("b", "c", "d", "f:3")]
    split = tokenized(rows, tokenizer, on_degenerate="keep")
    assert [(r.origin, r.kind) for r in split.rejections] == [("f:1", "row"), ("f:2", "row")]
    names(
        split.rejections[0].reason, "chat template", "1", "2", "data.chat_template=FILE"
    )  # it counts turns: 1, then 2
    names(split.rejections[1].reason, "chat template", "no b")
    assert [p.origin for p in split.pairs] == ["f:3"]


def test_chunks_make_no_difference() -> None:
    tokenizer = word_tokenizer()
    letters = string.ascii_lowercase[:24]
    rows = [pair(chat(f"{a} {b}"), a, f"{b} no", f"f:{a}{b}") for a in letters for b in letters]
    assert len(rows) > 2 * 256
    together = tokenized(rows, tokenizer).pairs
    assert [p.origin for p in together] == [p.origin for p in rows]
    for place in (0, 255, 256, 511, 575):
        [alone] = tokenized([rows[place]], tokenizer).pairs
        whole = together[place]
        assert (whole.prompt_ids, whole.chosen_ids, whole.rejected_ids) == (
            alone.prompt_ids,
            alone.chosen_ids,
            alone.rejected_ids,
        )
        assert whole.index == place


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with refused("EOS", remedy="eos_token"):
        tokenized([pair("a", "b", "c")], tokenizer)
