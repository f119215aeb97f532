"""Check that a chat template wrote its whole input: a template is a program, and may leave out or rewrite.

The text of a response has to occur in the trained text, and the text of a prompt in the rendered prompt, or the row is
refused. White space is ignored: templates trim and break lines. An earlier assistant turn may be rewritten, since
templates strip its reasoning by design, in generation too: such turns are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from caldpo.data.pair import Message
from caldpo.data.raw_row import RowError


def rewritten_turns(prompt: Iterable[Message], written: str) -> int:
    """Count the assistant turns of a prompt that do not occur in the rendered text verbatim.

    Each text needs an occurrence of its own: a short one may well be part of another turn.

    Raises:
        RowError: a turn of another role does not occur.
    """
    texts = [
        (text, m["role"]) for m in prompt for text in (m["content"], m.get("reasoning_content", "")) if text.strip()
    ]
    rest, count = _squeezed(written), 0
    for text, role in sorted(texts, key=lambda item: -len(_squeezed(item[0]))):
        form = next((form for form in _forms(text) if form in rest), None)
        if form is not None:
            rest = rest.replace(form, "\n", 1)
        elif role != "assistant":
            raise RowError(f"the chat template leaves out or rewrites the text of a {role} turn")
        else:
            count += 1
    return count


def require_response(turn: Message, written: str, side: str) -> None:
    """Check that a response occurs in the trained text completely.

    Args:
        turn: the response.
        written: what the template wrote after the prompt, up to its end token.
        side: chosen or rejected, for the message.

    Raises:
        RowError: part of the response does not occur.
    """
    if not occurs(turn["content"], written):
        raise RowError(f"the chat template leaves out or rewrites part of the {side} response")
    if not occurs(turn.get("reasoning_content", ""), written):
        raise RowError(f"the chat template leaves out the {side} response's reasoning_content")
    require_calls([turn], written)


def require_calls(turns: Iterable[Message], written: str) -> None:
    """Check that the text names the tools that turns call.

    Raises:
        RowError: a tool is not named, or a call has no name.
    """
    for call in (call for turn in turns for call in turn.get("tool_calls", ())):
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise RowError("tool_calls has a call without a name")
        if name not in written:
            raise RowError(f"the chat template does not write tool_calls ({name[:40]})")


def require_variables_read(variables: Iterable[str], template: str) -> None:
    """Check that a template reads the variables, by their names in it.

    Raises:
        RowError: a name occurs nowhere.
    """
    for name in variables:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise RowError(f"the chat template does not read chat_template_kwargs.{name}")


def without_calls(turns: Iterable[Message]) -> tuple[Message, ...]:
    """Return the turns without their tool calls."""
    bare: list[Any] = [{name: item for name, item in turn.items() if name != "tool_calls"} for turn in turns]
    return tuple(bare)


def occurs(text: str, written: str) -> bool:
    """Whether a text occurs in another, white space aside, or as the content of a JSON string."""
    return text.strip() in written or any(form in _squeezed(written) for form in _forms(text))


def _forms(text: str) -> Iterator[str]:
    """Yield the ways a template may write a text, without white space."""
    yield _squeezed(text)
    yield _squeezed(json.dumps(text, ensure_ascii=False)[1:-1])


def _squeezed(text: str) -> str:
    return "".join(text.split())
