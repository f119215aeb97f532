"""Prompts that a person gives: how they are read, how they are tokenised, how they are shown."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from caldpo.data.pair import Message, PreferencePair
from caldpo.data.tokenize import encode_prompt, tokenize_pairs
from caldpo.environments.reviews.review_environment import Reviews
from caldpo.environments.sft_policy import build_tokenizer
from caldpo.generation.generation_checks import read_prompts
from caldpo.generation.generation_output import print_prompt, print_responses
from caldpo.generation.responses import Response, as_prompt, find_form
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_tokenizer


def test_texts_are_taken_as_they_are() -> None:
    assert read_prompts(["  two lines\nof text ", "b"]) == ["  two lines\nof text ", "b"]


def test_a_text_file_has_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufefffirst é\r\n\r\n  \n second \u2028 half\nlast".encode())
    assert read_prompts(str(file)) == ["first é", " second \u2028 half", "last"]


def test_rows_are_texts_or_conversations(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    conversation = (Message(role="system", content="s"), Message(role="user", content="u"))
    file.write_text('{"prompt": "plain"}\n\n' + json.dumps({"prompt": conversation, "other": 1}) + "\n")
    assert read_prompts(str(file)) == ["plain", conversation]


@pytest.mark.parametrize(
    ("name", "content", "facts"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', ["p.jsonl:2", "`prompt`"]),
        ("p.jsonl", '{"prompt": [{"role": "bot", "content": "b"}]}', ["p.jsonl:1", "role", "'bot'"]),
        ("p.jsonl", '{"prompt": 3}', ["p.jsonl:1", "`prompt`", "list", "number"]),
        ("p.jsonl", "{nothing", ["p.jsonl:1", "JSON"]),
        ("p.jsonl", '{"prompt": " "}', ["p.jsonl:1", "text"]),
        ("p.jsonl", "\n", ["p.jsonl", "prompt"]),
        ("p.txt", b"\xff\xfe", ["p.txt", "UTF-8"]),
        ("p.md", "a", ["p.md", ".txt", ".jsonl"]),
        ("p.txt", None, ["p.txt", "no such file"]),
    ],
)
def test_what_is_no_prompt(
    name: str, content: str | bytes | None, facts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(*facts):
        read_prompts(name)


def test_a_list_needs_texts() -> None:
    with refused("text", key="prompts[1]"):
        read_prompts(["a", " "])
    with refused("prompt", key="prompts", value="[]"):
        read_prompts([])


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """w30 stands before what the user says, w31 before the assistant's."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ('w30 ' if m['role'] == 'user' else 'w31 ') + m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}w31 {% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "prompt"),
    [
        (tiny_tokenizer(), "w1 w2 w3"),
        (
            build_tokenizer(Reviews()),
            "Write a warm review of iron river : ending .",
        ),  # puts BOS in front
        (
            build_tokenizer(Reviews()),
            "<s>Write a warm review of iron river : ending .",
        ),  # whose BOS stands there already
        (chat_tokenizer(), (Message(role="user", content="w1 w2"),)),
        (
            chat_tokenizer(),
            tuple(Message(role=r, content=c) for r, c in [("user", "w1"), ("assistant", "w2"), ("user", "w3")]),
        ),
    ],
    ids=["text", "text with BOS", "BOS written out", "a turn", "a conversation"],
)
def test_a_prompt_has_the_tokens_that_training_gives_it(tokenizer, prompt) -> None:
    pair = PreferencePair(prompt, " w4", " w5")
    lengths = {"max_length": 60, "max_prompt_length": 50}
    split = tokenize_pairs([pair], tokenizer, **lengths, on_degenerate="keep", console=Console(quiet=True))
    assert encode_prompt(prompt, tokenizer) == split.pairs[0].prompt_ids


def test_a_conversation_needs_a_template() -> None:
    policy: Any = SimpleNamespace(tokenizer=tiny_tokenizer())
    assert as_prompt(policy, "w1 w2").ids == [5, 6]
    with refused("chat template", key="prompts", remedy="as_chat=false"):
        as_prompt(policy, (Message(role="user", content="w1 w2"),))
    with refused("chat template", key="as_chat", remedy="as_chat=false"):
        find_form(policy, as_chat=True)
    assert find_form(policy, as_chat=False)[0] is False


def recording_console(width: int = 200) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=False), out


def test_a_model_cannot_drive_the_terminal() -> None:
    console, out = recording_console()
    print_prompt(console, "prompt 1 of 1", "clear\x1b[2J [bold]x[/bold]")
    print_responses(console, [Response("policy", 0, "bell\x07 \x9b1m\nsecond line", 3, True, None, None)])
    text = out.getvalue()
    assert not {c for c in text if ord(c) < 32 or 127 <= ord(c) < 160} - {"\n"}
    for fragment in ("clear\\x1b[2J [bold]x[/bold]", "bell\\x07 \\x9b1m", "second line"):
        assert fragment in text


def test_the_end_of_a_long_prompt_is_shown() -> None:
    console, out = recording_console()
    print_prompt(console, "prompt", "a" * 2000 + " the question")
    names(out.getvalue(), "513 characters")
    assert out.getvalue().endswith(" the question\n")


def test_columns_are_those_that_are_known() -> None:
    console, out = recording_console()
    print_responses(console, [Response("policy", i, "good", 3, i == 0, None, None) for i in range(2)])
    assert "log-ratio" not in out.getvalue()
    assert "reward" not in out.getvalue()
    for fragment in ("policy 1", "policy 2", "3, cut"):
        assert fragment in out.getvalue()
    console, out = recording_console()
    print_responses(console, [Response("policy", 0, "good", 3, True, -1.25, 0.5)], ("better", 0.75))
    rows = [line.split() for line in out.getvalue().splitlines() if line.strip()]
    assert ["chosen", "(data)", "better", "0.750"] in rows
    assert ["policy", "good", "3", "-1.25", "0.500"] in rows
