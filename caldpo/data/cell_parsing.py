"""Values of single columns before a format reads them: conversations in other notations, and cells without a type."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from caldpo.data.raw_row import RowError

TURNS = ("prompt", "chosen", "rejected", "completion", "messages", "conversations")  # may hold conversations
MAX_ENCODED = 2_000_000  # characters; Python's own parser takes a hundred times the memory of what it reads

_SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
_LIST = re.compile(r"\s*(?:array\()?\[\s*\{\s*['\"]\w+['\"]\s*:")
_OBJECT = re.compile(r"\s*\{\s*['\"](?:role|from|content|value)['\"]\s*:")
_ROLE = re.compile(r"['\"](?:role|from)['\"]\s*:\s*['\"]")
_SPEAKER = re.compile(r"['\"](?:role|from)['\"]\s*:\s*['\"](?:system|user|assistant|tool|human|gpt)['\"]")


class Cell(str):
    """A cell of a table without types (csv), in which a number or a list can only be written as text."""


def looks_encoded(value: str) -> bool:
    """Whether a text begins as the JSON or Python notation of messages does, and says who speaks."""
    if _LIST.match(value):
        return _ROLE.search(value) is not None
    return _OBJECT.match(value) is not None and _SPEAKER.search(value) is not None


def decoded(column: str, value: Any) -> Any:
    """The messages that a text encodes in JSON or Python notation; any other value as it is.

    For tables alone: JSON holds a list where it means one, and an encoded one there is refused.

    Raises:
        RowError: it looks like messages and is no notation of them.
    """
    if not isinstance(value, str) or not looks_encoded(value):
        return value
    found = parsed(value)
    items = found if isinstance(found, list) else [found]
    if items and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items):
        return items
    raise RowError(f"`{column}` is a conversation encoded as text, which cannot be decoded")


def parsed(value: str) -> Any:
    """What a text says in JSON or else in Python's notation; None where it is neither, or too long."""
    if len(value) > MAX_ENCODED:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def as_turns(column: str, value: Any) -> Any:
    """Messages with ``role`` and ``content``, of ShareGPT's ``from`` and ``value`` or of a single object."""
    if isinstance(value, dict):
        turn = _turn(value)
        if "role" not in turn and isinstance(turn.get("content"), str):
            turn = {"role": "user" if column == "prompt" else "assistant", **turn}
        return [turn] if "role" in turn else value
    if isinstance(value, list):
        return [_turn(item) if isinstance(item, dict) else item for item in value]
    return value


def _turn(item: Mapping[str, Any]) -> dict[str, Any]:
    if "role" in item or "from" not in item or "value" not in item:
        return dict(item)
    speaker = item["from"]
    role = _SHAREGPT.get(speaker, speaker) if isinstance(speaker, str) else speaker
    rest = {name: other for name, other in item.items() if name not in ("from", "value")}
    return {"role": role, "content": item["value"], **rest}
