"""Whether a chat template wrote what it was given: a template is a program, and may leave out or rewrite.

What a response says has to stand in what is trained on, and what a prompt says in what the policy is prompted with, or
the row is refused. White space is not looked at: templates trim and break lines. An earlier turn of the assistant may
be rewritten, since templates take its reasoning out by design, when text is generated, too: that is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from caldpo.data.pair import Message
from caldpo.data.raw_row import RowError


def rewritten_turns(prompt: Iterable[Message], written: str) -> int:
    """How many of the assistant's turns in a prompt do not stand in it as they were given.

    Each text has to stand in a place of its own: a short one may well be part of another turn.

    Raises:
        RowError: another turn does not.
    """
    told = [
        (text, m["role"]) for m in prompt for text in (m["content"], m.get("reasoning_content", "")) if text.strip()
    ]
    left, count = _squeezed(written), 0
    for text, role in sorted(told, key=lambda said: -len(_squeezed(said[0]))):
        found = next((form for form in _forms(text) if form in left), None)
        if found is not None:
            left = left.replace(found, "\n", 1)
        elif role != "assistant":
            raise RowError(f"the chat template leaves out or rewrites the text of a {role} turn")
        else:
            count += 1
    return count


def require_response(turn: Message, written: str, side: str) -> None:
    """Check that all of a response stands in what is trained on.

    Args:
        turn: the response.
        written: what the template wrote after the prompt, up to its end token.
        side: chosen or rejected, for the message.

    Raises:
        RowError: part of it does not.
    """
    if not stands(turn["content"], written):
        raise RowError(f"the chat template leaves out or rewrites part of the {side} response")
    if not stands(turn.get("reasoning_content", ""), written):
        raise RowError(f"the chat template leaves out the {side} response's reasoning_content")
    require_calls([turn], written)


def require_calls(turns: Iterable[Message], written: str) -> None:
    """Check that the tools that turns call are named in the text.

    Raises:
        RowError: one is not, or a call has no name.
    """
    for call in (call for turn in turns for call in turn.get("tool_calls", ())):
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise RowError("tool_calls has a call without a name")
        if name not in written:
            raise RowError(f"the chat template does not write tool_calls ({name[:40]})")


def require_read(variables: Iterable[str], template: str) -> None:
    """Check that a template asks for variables, by their names in it.

    Raises:
        RowError: one occurs nowhere.
    """
    for name in variables:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise RowError(f"the chat template does not read chat_template_kwargs.{name}")


def without_calls(turns: Iterable[Message]) -> tuple[Message, ...]:
    """The turns without what they call."""
    bare: list[Any] = [{name: item for name, item in turn.items() if name != "tool_calls"} for turn in turns]
    return tuple(bare)


def stands(text: str, written: str) -> bool:
    """Whether a text occurs in another, white space aside; as the content of a JSON string, too."""
    return text.strip() in written or any(form in _squeezed(written) for form in _forms(text))


def _forms(text: str) -> Iterator[str]:
    """The ways in which a template may write a text, without white space."""
    yield _squeezed(text)
    yield _squeezed(json.dumps(text, ensure_ascii=False)[1:-1])


def _squeezed(text: str) -> str:
    return "".join(text.split())
