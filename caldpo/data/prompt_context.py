"""What stands around a prompt in columns of its own: a system turn, tools, variables for the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from caldpo.data.cell_parsing import parsed
from caldpo.data.columns import MappedRow, is_empty
from caldpo.data.formats._fields import kind
from caldpo.data.formats.hh import is_transcript
from caldpo.data.pair import Message, PreferencePair
from caldpo.data.raw_row import RowError, shown


def with_context(pair: PreferencePair, row: MappedRow) -> PreferencePair:
    """The pair with the system turn, tools and template variables of its row.

    A text prompt in a row that has a column for the system turn is a user's turn, also where that column is blank, so
    that a data set has one form throughout; the space that joins its responses to the prompt is then left out.

    Raises:
        RowError: one of them cannot be read, or has no place beside such a prompt.
    """
    system = row.get("system")
    tools, variables = _tools(row.get("tools")), _variables(row.get("chat_template_kwargs"))
    if system is not None and not isinstance(system, str):
        raise RowError(f"`system` is not text (but {kind(system)})")
    system = system or ""
    prompt = pair.prompt
    if isinstance(prompt, str):
        if tools or variables:
            raise RowError(f"`{'tools' if tools else 'chat_template_kwargs'}` is for messages, and the prompt is text")
        if not row.has("system"):
            return pair
        if is_transcript(prompt):
            if system.strip():
                raise RowError("`system` is for messages, and the prompt is a transcript")
            return pair
        prompt = (Message(role="user", content=prompt),)
        pair = replace(pair, chosen=pair.chosen.lstrip(" "), rejected=pair.rejected.lstrip(" "))
    if system.strip():
        if prompt[0]["role"] != "system":
            prompt = (Message(role="system", content=str(system)), *prompt)
        elif prompt[0]["content"].strip() != system.strip():
            raise RowError("`system` is another one than the system turn of the conversation")
    return replace(pair, prompt=prompt, tools=tools, template_kwargs=variables)


def _tools(value: Any) -> list[dict[str, Any]] | None:
    if is_empty(value):
        return None
    found = parsed(value) if isinstance(value, str) else value
    if is_empty(found) and found is not None:
        return None
    items = [parsed(item) if isinstance(item, str) else item for item in found] if isinstance(found, list) else [found]
    if not items or not all(isinstance(item, dict) for item in items):
        raise RowError(f"`tools` is no list of tools (but {kind(value)})")
    return items


def _variables(value: Any) -> dict[str, Any] | None:
    if is_empty(value):
        return None
    found = parsed(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise RowError(f"`chat_template_kwargs` is no object (but {kind(value)})")
    if strange := next((name for name in found if not name.isidentifier()), None):
        raise RowError(f"`chat_template_kwargs` has a name that no template can read ({shown(strange)})")
    return {name: item for name, item in found.items() if item is not None} or None
