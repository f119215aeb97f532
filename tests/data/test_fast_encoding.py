"""Ids at less cost are the tokenizer's own."""

from __future__ import annotations

import functools
import gzip
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from caldpo.data import fast_encoding
from caldpo.data.fast_encoding import fast_encoder
from tests.data.small import byte_tokenizer, gpt2, letter_tokenizer, word_tokenizer, zephyr
from tests.helpers.shared import shared

PIECES = [
    *" \n\t\r▁ab.é日🙂\0\u2028",
    "  ",
    "\n\n",
    " the",
    "The",
    "'s",
    "12",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<|user|>",
]
texts = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), max_size=14).map("".join)


def own(tokenizer: Any, some: list[str]) -> list[list[int]]:
    """The ids that the tokenizer's call gives."""
    ids: list[list[int]] = tokenizer(some, add_special_tokens=False)["input_ids"]
    return ids


def sentence_piece(scheme: str = "first", **changes: Any) -> PreTrainedTokenizerFast:
    """A small vocabulary in SentencePiece's style, of bytes and a few merges."""
    merges = [
        ("▁", "▁"),
        ("▁", "t"),
        ("h", "e"),
        ("▁t", "he"),
        ("a", "b"),
        ("▁", "a"),
        ("1", "2"),
        *changes.pop("merges", ()),
    ]
    entries = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abehtT.12'su|<>\n"]
    vocabulary = {token: i for i, token in enumerate([*entries, *("".join(merge) for merge in merges)])}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True, **changes)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@functools.cache
def fast(name: str) -> tuple[Any, Any]:
    """A tokenizer and its fast encoder."""
    tokenizer = zephyr() if name == "zephyr" else gpt2() if name == "gpt2" else sentence_piece(name)
    return tokenizer, fast_encoder(tokenizer)


def by_words(tokenizer: Any) -> bool:
    return fast_encoding._words_encoder(tokenizer.backend_tokenizer) is not None


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@settings(max_examples=300, deadline=None)
@given(some=st.lists(texts, min_size=1, max_size=4))
def test_words_have_the_ids_of_the_text(scheme: str, some: list[str]) -> None:
    tokenizer, encode = fast(scheme)
    assert by_words(tokenizer)
    assert [ids.tolist() for ids in encode(some)] == own(tokenizer, some)


@settings(max_examples=200, deadline=None)
@given(some=st.lists(texts, min_size=1, max_size=4))
def test_real_tokenizers(some: list[str]) -> None:
    for name in ("zephyr", "gpt2"):
        tokenizer, encode = fast(name)
        assert [ids.tolist() for ids in encode(some)] == own(tokenizer, some)


def test_which_real_tokenizer_encodes_by_words() -> None:
    assert by_words(zephyr())
    assert not by_words(gpt2())


def test_real_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with so few words remembered that they are forgotten all the time."""
    with gzip.open(shared("data/test_prefs.jsonl.gz")) as lines:
        some = [json.loads(line)["chosen"][-1]["content"] for line, _ in zip(lines, range(300), strict=False)]
    expected = own(zephyr(), some)
    assert [ids.tolist() for ids in fast_encoder(zephyr())(some)] == expected
    monkeypatch.setattr(fast_encoding, "_MOST_WORDS", 50)
    assert [ids.tolist() for ids in fast_encoder(zephyr())(some)] == expected


def test_as_many_words_are_remembered_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest ones; a word that is used again is no longer among the oldest."""
    monkeypatch.setattr(fast_encoding, "_MOST_WORDS", 10)
    words = fast_encoding._Words(zephyr().backend_tokenizer)
    asked: list[str] = []
    tokenized = words._tokenized
    monkeypatch.setattr(words, "_tokenized", lambda word: asked.append(word) or tokenized(word))
    for i in range(200):
        for word in ("often", f"w{i}", "x" * 100):
            assert words[word] == tokenized(word)
            assert len(words) + len(words._before) <= 20
    assert asked.count("often") == 1
    assert asked.count("x" * 100) == 200, "too long to be remembered"


@pytest.mark.parametrize(
    "tokenizer",
    [
        sentence_piece(merges=[("a", "▁")]),  # crosses the beginning of a word
        sentence_piece(merges=[("a", "\n")]),
        sentence_piece(dropout=0.5),
        letter_tokenizer(),  # no bytes for other characters
        word_tokenizer(),
        word_tokenizer(bos=True),
        byte_tokenizer(),
    ],
)
def test_where_a_word_is_not_alone_the_whole_text_is_encoded(tokenizer: Any) -> None:
    assert not by_words(tokenizer)
    if getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        return  # draws its ids
    some = ["a b\nab a the ▁a", "yes no maybe", "</s> a"]
    assert [ids.tolist() for ids in fast_encoder(tokenizer)(some)] == own(tokenizer, some)


def test_added_tokens_that_take_the_space_around_them() -> None:
    tokenizer = sentence_piece()
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True, rstrip=True)])
    assert not by_words(tokenizer)
    tokenizer = sentence_piece()
    tokenizer.add_tokens([AddedToken("<x>"), AddedToken("<xx>")])
    assert by_words(tokenizer)
    some = ["a <x> b<xx> <xx>", "<x>a", "<x", "<x></s> <xx>x>"]
    assert [ids.tolist() for ids in fast_encoder(tokenizer)(some)] == own(tokenizer, some)


@pytest.mark.parametrize("added", ["</s>\n<x>", "ab<"])
def test_added_tokens_over_special_ones(added: str) -> None:
    """The tokenizer cuts out special tokens first, and added ones of what is left."""
    tokenizer = sentence_piece()
    tokenizer.add_tokens([added])
    assert not by_words(tokenizer)
    some = [f"a{added}b", f"a{added}s> b"]
    assert [ids.tolist() for ids in fast_encoder(tokenizer)(some)] == own(tokenizer, some)


def test_a_tokenizer_of_its_own_code_is_asked_itself() -> None:
    class Own(PreTrainedTokenizerFast):
        def __call__(self, text: Any, *args: Any, **keys: Any) -> Any:
            return {"input_ids": [[7] for _ in text]}

    tokenizer = Own(tokenizer_object=sentence_piece().backend_tokenizer, eos_token="</s>")
    assert [ids.tolist() for ids in fast_encoder(tokenizer)(["a b", "c"])] == [[7], [7]]


def test_padding_and_truncation_of_an_earlier_call_do_not_count() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "</s>"
    encode = fast_encoder(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert [len(ids) for ids in encode(["abc", "d"])] == [3, 1]
