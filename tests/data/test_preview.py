"""What is printed of tokenised pairs."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from transformers import AutoTokenizer

from caldpo.data.token_preview import pieces, print_preview
from caldpo.data.tokenize import tokenize_pairs
from tests.data.small import chat, pair, word_tokenizer
from tests.shared import shared


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
    assert text.splitlines()[1:] == [
        "pair 0 (f:7)",
        "  prompt   8 tokens: user : a ? <eos> z assistant :",
        "  chosen   3 tokens: [ yes][ b][ <eos>]",
        "  rejected 2 tokens: [ no][ <eos>]",
        "pair 1 (f:9)",
        "  prompt   1 tokens: c",
        "  chosen   2 tokens: [ d][ <eos>]",
        "  rejected 2 tokens: [ e][ <eos>]",
    ]


def test_only_as_many_as_asked_for() -> None:
    rows = [pair("a", " b", " c"), pair("d", " e", " f")]
    assert "pair 0" in printed(rows, word_tokenizer(), count=1)
    assert "pair 1" not in printed(rows, word_tokenizer(), count=1)
    assert printed(rows, word_tokenizer(), count=0) == ""


def test_cuts_are_told_and_the_middle_of_long_texts_is_left_out() -> None:
    rows = [pair("a b c d", " " + " ".join("efgh" * 20), " i")]
    lines = printed(rows, word_tokenizer(), max_length=62, max_prompt_length=2).splitlines()
    assert lines[2] == "  prompt   2 tokens, cut from the left: c d"
    assert lines[3].startswith("  chosen   60 tokens, cut from the right: [ e][ f][ g]")
    assert "[ h] ... 12 tokens ... [ e]" in lines[3]
    assert lines[3].count("[") == 48
    assert lines[4] == "  rejected 2 tokens: [ i][ <eos>]"


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
    assert "pair 0 (t[1]:3)" in text
    assert "[[bold]]" in text.replace(" ", "")
