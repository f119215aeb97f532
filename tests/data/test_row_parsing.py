"""System turns, tools, template variables and reasoning: written by the chat template, or the row is refused."""

from __future__ import annotations

from typing import Any

import pytest

from caldpo.data.load import load_pairs
from tests.data.format_rows import assistant, system, user
from tests.data.small import byte_tokenizer, rendered, tokenized
from tests.data.test_demonstrations import Rows
from tests.helpers.messages import names

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
    return rendered(pair_of(row), byte_tokenizer(template=template)).prompt


def test_tools_and_what_turns_call_reach_the_template() -> None:
    row = {"prompt": CALLED, **SIDES, "tools": [TOOL]}
    written = prompt_of(row, TOOLS)
    assert written.startswith('[{"type": "function", "function": {"name": "weather", "description"')
    assert 'assistant:<call>{"name": "weather", "arguments": {"city": "Oslo"}}</s>tool:14</s>assistant:' in written
    names(refusal(row, TURNS), "chat template", "tools")
    plain = TURNS.replace("m.tool_calls", "[]")
    names(refusal({"prompt": CALLED, **SIDES}, plain), "chat template", "tool_calls")
    plain_text = {"prompt": "Oslo?", "chosen": "a", "rejected": "b", "tools": [TOOL]}
    names(refusal(plain_text, TOOLS), "`tools`", "messages")
    as_text = {
        **row,
        "tools": '[{"type": "function", "function": {"name": "weather", "description": "Weather of a city"}}]',
    }
    assert prompt_of(as_text, TOOLS) == written
    names(refusal({**row, "tools": "a hammer"}, TOOLS), "`tools`", "list of tools")


def test_a_response_may_be_a_tool_call_and_has_to_occur() -> None:
    calls = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    row = {"prompt": [user("Oslo?")], "chosen": [calls], "rejected": [assistant("No.")], "tools": [TOOL]}
    assert rendered(pair_of(row), byte_tokenizer(template=TOOLS)).chosen.startswith('<call>{"name": "weather"')
    template = TOOLS.replace("m.tool_calls", "[]")
    names(refusal(row, template), "chat template", "tool_calls", "weather")
    names(refusal({**row, "chosen": [assistant("")]}, TOOLS), "chosen response", "text")
    turns = [user("a"), {"role": "tool", "content": "b"}, assistant("c")]
    names(refusal({"messages": turns}, TURNS), "`messages`", "user, tool, assistant")


def test_variables_reach_the_template() -> None:
    row = {"prompt": [user("Why?")], **SIDES, "chat_template_kwargs": {"enable_thinking": False}}
    template = THINKS.replace(
        "{{ m.role + ':' }}", "{{ m.role + ':' }}{% if m.role == 'assistant' %}{{ '<think></think>' }}{% endif %}"
    )
    assert prompt_of(row, template).endswith("assistant:<think></think>")
    assert not prompt_of({**row, "chat_template_kwargs": None}, template).endswith("</think>")
    names(refusal(row, TURNS), "chat template", "chat_template_kwargs.enable_thinking")
    taken = {**row, "chat_template_kwargs": {"messages": []}}
    names(refusal(taken, TURNS), "chat_template_kwargs", "messages")
    plain_text = {"prompt": "a", "chosen": "b", "rejected": "c", "chat_template_kwargs": {"x": 1}}
    names(refusal(plain_text, TURNS), "chat_template_kwargs", "messages", "prompt", "text")


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_reaches_the_template(name: str) -> None:
    row = {"prompt": [user("Why?")], **SIDES, "chosen": [{**assistant("Rain."), name: "Clouds."}]}
    assert rendered(pair_of(row), byte_tokenizer(template=THINKS)).chosen == "<think>Clouds.</think>Rain.</s>"
    names(refusal(row, TURNS), "chat template", "chosen response", "reasoning_content")


def test_a_response_that_a_template_cuts_is_refused() -> None:
    row = {"prompt": [user("Why?")], **SIDES, "rejected": [assistant("<think>\nHm.\n</think>\n\nNo.")]}
    names(refusal(row, STRIPS), "chat template", "rejected response")
    assert rendered(pair_of(row), byte_tokenizer(template=TURNS)).rejected.startswith("<think>\nHm.")
    spaced = {**row, "rejected": [assistant("  No. \n")]}  # trimmed, and not rewritten
    assert rendered(pair_of(spaced), byte_tokenizer(template=TURNS.replace("m.content", "m.content | trim"))).rejected


def test_other_turns_occur_except_earlier_ones_of_the_assistant() -> None:
    row = {"prompt": [system("Be brief."), user("Why?")], **SIDES}
    leaves_out = "{% for m in messages if m.role != 'system' %}" + TURNS.removeprefix("{% for m in messages %}")
    names(refusal(row, leaves_out), "chat template", "system turn")
    cuts = TURNS.replace("m.content", "m.content[:3]")
    asked = {"prompt": [user("Why is it so?")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    names(refusal(asked, cuts), "chat template", "user turn")
    short = {"prompt": [system("Be"), user("Be brief.")], **SIDES}  # its text stands in another turn
    names(refusal(short, leaves_out), "chat template", "system turn")
    again = [user("go on"), assistant("no"), user("go on")]
    assert prompt_of({"prompt": again, **SIDES}, TURNS).count("go on") == 2
    last = TURNS.replace("in messages %}", "in messages[1:] %}", 1)
    names(refusal({"prompt": again, **SIDES}, last), "chat template", "user turn")
    earlier = {"prompt": [user("a?"), assistant("<think>Hm.</think>b"), user("c?")], **SIDES}
    split = tokenized([pair_of(earlier)], byte_tokenizer(template=STRIPS))
    assert split.counts.turns_rewritten == 1
    escapes = TURNS.replace("m.role + ':' + m.content", "m.role + ':' + (m.content | tojson)")
    assert prompt_of({"prompt": [user('"a"\n?')], **SIDES}, escapes).startswith('user:"\\"a\\"\\n?"')


def test_text_after_the_end_of_a_turn_is_refused() -> None:
    tokenizer = byte_tokenizer(template=TURNS.replace("m.content }}", "m.content + '<end>' }}"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    row = {"prompt": [user("Oslo?")], "rejected": [assistant("No.")], "chosen": [assistant("Rain.")]}
    [kept] = tokenized([pair_of(row)], tokenizer).pairs
    assert tokenizer.decode(kept.chosen_ids) == "Rain.<end>"
    called = pair_of({**row, "chosen": [{**assistant("Rain."), "tool_calls": [CALL]}]})
    [rejection] = tokenized([called], tokenizer).rejections
    names(rejection.reason, "chat template", "tool_calls", "weather")


def test_one_system_turn() -> None:
    own = {"prompt": [system("Be brief."), user("Why?")], **SIDES}
    assert pair_of({**own, "system": "Be brief."}).prompt == tuple(own["prompt"])
    names(refusal({**own, "system": "Be long."}, TURNS), "`system`", "system turn")
    transcript = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "system": "Hi"}
    names(refusal(transcript, TURNS), "`system`", "prompt", "transcript")
    text = pair_of({"system": "Be brief.", "prompt": "Why?", "chosen": " Rain.", "rejected": " No."})
    assert (text.prompt, text.chosen) == ((system("Be brief."), user("Why?")), "Rain.")
