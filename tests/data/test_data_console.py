"""The printed preview of tokenised pairs."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console
from transformers import AutoTokenizer

from caldpo.data.data_console import pieces, print_preview
from caldpo.data.tokenize import tokenize_pairs
from tests.data.small import chat, pair, word_tokenizer
from tests.helpers.messages import names
from tests.helpers.shared import shared


def printed(pairs: list[Any], tokenizer: Any, count: int = 2, **limits: int) -> str:
    stream = io.StringIO()
    split = tokenize_pairs(
        pairs,
        tokenizer,
        **({"max_length": 500, "max_prompt_length": 400} | limits),
        on_degenerate="drop",
        console=Console(quiet=True),
    )
    print_preview(split, tokenizer, count, Console(file=stream, width=100))
    return stream.getvalue()


def test_loss_bearing_tokens_are_in_brackets_without_any_colour() -> None:
    text = printed([pair(chat("a ?"), "yes b", "no", "f:7"), pair("c", " d", " e", "f:9")], word_tokenizer())
    facts = [
        (0, "f:7"),
        ("prompt", 8, "user : a ? <eos> z assistant :"),
        ("chosen", 3, "[ yes][ b][ <eos>]"),
        ("rejected", 2, "[ no][ <eos>]"),
        (1, "f:9"),
        ("prompt", 1, "c"),
        ("chosen", 2, "[ d][ <eos>]"),
        ("rejected", 2, "[ e][ <eos>]"),
    ]
    for line, expected in zip(text.splitlines()[1:], facts, strict=True):
        names(line, *expected)


def test_only_as_many_as_asked_for() -> None:
    rows = [pair("a", " b", " c"), pair("d", " e", " f")]
    text = printed(rows, word_tokenizer(), count=1)
    names(text, "[ b]", "[ c]")
    assert "[ e]" not in text
    assert printed(rows, word_tokenizer(), count=0) == ""


def test_truncation_is_noted_and_the_middle_of_long_texts_is_left_out() -> None:
    rows = [pair("a b c d", " " + " ".join("efgh" * 20), " i")]
    lines = printed(rows, word_tokenizer(), max_length=62, max_prompt_length=2).splitlines()
    names(lines[2], "prompt", "2 tokens", "left", "c d")
    names(lines[3], "chosen", "60 tokens", "right", "[ e][ f][ g]", "12 tokens")
    assert re.search(r"\[ h\] .*12 tokens.* \[ e\]", lines[3])
    assert lines[3].count("[") == 48
    names(lines[4], "rejected", "2 tokens", "[ i][ <eos>]")


def test_real_pieces_show_spaces_bytes_and_no_control_characters() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers/zephyr"))
    text = " plain \x1b[31mred\n\nä 🦜</s>"
    ids = tokenizer(f"x{text}", add_special_tokens=False)["input_ids"]
    shown = pieces(ids, 1, tokenizer)
    assert len(shown) == len(ids) - 1
    assert shown[0] == " plain"
    assert shown[-1] == "</s>"
    assert "\\n" in shown
    assert "\\x1b" in "".join(shown)
    assert "<0xF0>" in shown  # the parrot's first byte
    assert all(character.isprintable() for piece in shown for character in piece)
    assert "ä" in "".join(shown)


def test_data_is_not_read_as_markup() -> None:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["[bold]", "[/bold]"])
    text = printed([pair("[/bold] a", " [bold] b", " [/bold]", "t[1]:3")], tokenizer)
    names(text, "t[1]:3")
    assert "[[bold]]" in text.replace(" ", "")
