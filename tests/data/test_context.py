"""System turns, tools, template variables and reasoning: written by the chat template, or the row is refused."""

from __future__ import annotations

from typing import Any

import pytest

from caldpo.data.chat_template import render_pair
from caldpo.data.load import load_pairs
from tests.data.format_rows import assistant, system, user
from tests.data.small import byte_tokenizer, tokenized
from tests.data.test_demonstrations import Rows

TURNS = (
    "{% for m in messages %}{{ m.role + ':' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '<call>' + (call.function | tojson) }}{% endfor %}"
    "{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + TURNS
THINKS = (
    "{% for m in messages %}{{ m.role + ':' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
STRIPS = (  # as some templates of reasoning models do, in every turn of the assistant
    "{% for m in messages %}{% set said = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "{{ m.role + ':' + said + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather of a city"}}
SIDES = {"chosen": [assistant("Rain.")], "rejected": [assistant("No.")]}
CALLED = [
    user("Oslo?"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "14"},
]


def pair_of(row: dict[str, Any]) -> Any:
    pairs, report = load_pairs(Rows(train=[row]), "train", demonstrations=True)
    assert pairs, report.rejections
    return pairs[0]


def refusal(row: dict[str, Any], template: str) -> str:
    """Why a row is refused: when it is read, or when it is rendered."""
    pairs, report = load_pairs(Rows(train=[row]), "train", demonstrations=True)
    left = report.rejections or tokenized(pairs, byte_tokenizer(template=template)).rejections
    assert [rejection.kind for rejection in left] == ["row"]
    return left[0].reason


def prompt_of(row: dict[str, Any], template: str) -> str:
    return render_pair(pair_of(row), byte_tokenizer(template=template)).prompt


def test_tools_and_what_turns_call_reach_the_template() -> None:
    row = {"prompt": CALLED, **SIDES, "tools": [TOOL]}
    written = prompt_of(row, TOOLS)
    assert written.startswith('[{"type": "function", "function": {"name": "weather", "description"')
    assert 'assistant:<call>{"name": "weather", "arguments": {"city": "Oslo"}}</s>tool:14</s>assistant:' in written
    assert refusal(row, TURNS) == "the chat template does not write the list of tools"
    plain = TURNS.replace("m.tool_calls", "[]")
    assert refusal({"prompt": CALLED, **SIDES}, plain) == "the chat template does not write tool_calls"
    assert "`tools` is for messages" in refusal(
        {"prompt": "Oslo?", "chosen": "a", "rejected": "b", "tools": [TOOL]}, TOOLS
    )
    as_text = {
        **row,
        "tools": '[{"type": "function", "function": {"name": "weather", "description": "Weather of a city"}}]',
    }
    assert prompt_of(as_text, TOOLS) == written
    assert "`tools` is no list of tools" in refusal({**row, "tools": "a hammer"}, TOOLS)


def test_a_response_may_be_a_call_and_has_to_stand() -> None:
    calls = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    row = {"prompt": [user("Oslo?")], "chosen": [calls], "rejected": [assistant("No.")], "tools": [TOOL]}
    assert render_pair(pair_of(row), byte_tokenizer(template=TOOLS)).chosen.startswith('<call>{"name": "weather"')
    template = TOOLS.replace("m.tool_calls", "[]")
    assert refusal(row, template) == "the chat template does not write tool_calls (weather)"
    assert "the chosen response has no text" in refusal({**row, "chosen": [assistant("")]}, TOOLS)
    assert "does not alternate" in refusal(
        {"messages": [user("a"), {"role": "tool", "content": "b"}, assistant("c")]}, TURNS
    )


def test_variables_reach_the_template() -> None:
    row = {"prompt": [user("Why?")], **SIDES, "chat_template_kwargs": {"enable_thinking": False}}
    template = THINKS.replace(
        "{{ m.role + ':' }}", "{{ m.role + ':' }}{% if m.role == 'assistant' %}{{ '<think></think>' }}{% endif %}"
    )
    assert prompt_of(row, template).endswith("assistant:<think></think>")
    assert not prompt_of({**row, "chat_template_kwargs": None}, template).endswith("</think>")
    assert refusal(row, TURNS) == "the chat template does not read chat_template_kwargs.enable_thinking"
    taken = {**row, "chat_template_kwargs": {"messages": []}}
    assert "names what is not the data's to say (messages)" in refusal(taken, TURNS)
    assert "is for messages, and the prompt is text" in refusal(
        {"prompt": "a", "chosen": "b", "rejected": "c", "chat_template_kwargs": {"x": 1}}, TURNS
    )


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_reaches_the_template(name: str) -> None:
    row = {"prompt": [user("Why?")], **SIDES, "chosen": [{**assistant("Rain."), name: "Clouds."}]}
    assert render_pair(pair_of(row), byte_tokenizer(template=THINKS)).chosen == "<think>Clouds.</think>Rain.</s>"
    assert refusal(row, TURNS) == "the chat template leaves out the chosen response's reasoning_content"


def test_a_response_that_a_template_cuts_is_refused() -> None:
    row = {"prompt": [user("Why?")], **SIDES, "rejected": [assistant("<think>\nHm.\n</think>\n\nNo.")]}
    assert refusal(row, STRIPS) == "the chat template leaves out or rewrites part of the rejected response"
    assert render_pair(pair_of(row), byte_tokenizer(template=TURNS)).rejected.startswith("<think>\nHm.")
    spaced = {**row, "rejected": [assistant("  No. \n")]}  # trimmed, and not rewritten
    assert render_pair(
        pair_of(spaced), byte_tokenizer(template=TURNS.replace("m.content", "m.content | trim"))
    ).rejected


def test_other_turns_stand_too_but_for_earlier_ones_of_the_assistant() -> None:
    row = {"prompt": [system("Be brief."), user("Why?")], **SIDES}
    leaves_out = "{% for m in messages if m.role != 'system' %}" + TURNS.removeprefix("{% for m in messages %}")
    assert refusal(row, leaves_out) == "the chat template leaves out or rewrites the text of a system turn"
    cuts = TURNS.replace("m.content", "m.content[:3]")
    assert "the text of a user turn" in refusal(
        {"prompt": [user("Why is it so?")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, cuts
    )
    short = {"prompt": [system("Be"), user("Be brief.")], **SIDES}  # its text stands in another turn
    assert refusal(short, leaves_out) == "the chat template leaves out or rewrites the text of a system turn"
    again = [user("go on"), assistant("no"), user("go on")]
    assert prompt_of({"prompt": again, **SIDES}, TURNS).count("go on") == 2
    last = TURNS.replace("in messages %}", "in messages[1:] %}", 1)
    assert "the text of a user turn" in refusal({"prompt": again, **SIDES}, last)
    earlier = {"prompt": [user("a?"), assistant("<think>Hm.</think>b"), user("c?")], **SIDES}
    split = tokenized([pair_of(earlier)], byte_tokenizer(template=STRIPS))
    assert split.counts.turns_rewritten == 1
    escapes = TURNS.replace("m.role + ':' + m.content", "m.role + ':' + (m.content | tojson)")
    assert prompt_of({"prompt": [user('"a"\n?')], **SIDES}, escapes).startswith('user:"\\"a\\"\\n?"')


def test_what_stands_after_the_end_of_a_turn_is_not_trained_on_and_refused() -> None:
    tokenizer = byte_tokenizer(template=TURNS.replace("m.content }}", "m.content + '<end>' }}"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    row = {"prompt": [user("Oslo?")], "rejected": [assistant("No.")], "chosen": [assistant("Rain.")]}
    [kept] = tokenized([pair_of(row)], tokenizer).pairs
    assert tokenizer.decode(kept.chosen_ids) == "Rain.<end>"
    called = pair_of({**row, "chosen": [{**assistant("Rain."), "tool_calls": [CALL]}]})
    [rejection] = tokenized([called], tokenizer).rejections
    assert rejection.reason == "the chat template does not write tool_calls (weather)"


def test_one_system_turn() -> None:
    own = {"prompt": [system("Be brief."), user("Why?")], **SIDES}
    assert pair_of({**own, "system": "Be brief."}).prompt == tuple(own["prompt"])
    assert "another one than the system turn" in refusal({**own, "system": "Be long."}, TURNS)
    transcript = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "system": "Hi"}
    assert "the prompt is a transcript" in refusal(transcript, TURNS)
    text = pair_of({"system": "Be brief.", "prompt": "Why?", "chosen": " Rain.", "rejected": " No."})
    assert (text.prompt, text.chosen) == ((system("Be brief."), user("Why?")), "Rain.")
