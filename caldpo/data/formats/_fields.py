"""Checks on single columns that several formats share. Each raises RowError with a fixed phrase."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from caldpo.data.pair import Message
from caldpo.data.rows import RowError, shown

ROLES = ("system", "user", "assistant")
_COMPARED = ("chosen", "rejected", "summaries", "label")  # columns of responses that were compared or judged
_DEMONSTRATED = ("messages", "completion", "summary")  # columns of a single response to imitate


def is_demonstration(row: Mapping[str, Any]) -> bool:
    """Whether a row's columns have a response to imitate, and none that was compared or judged."""
    return any(name in row for name in _DEMONSTRATED) and not any(name in row for name in _COMPARED)


def text(row: Mapping[str, Any], column: str) -> str:
    """The text in ``column``; a conversation encoded as text is refused, lest JSON be trained on."""
    value = _present(row, column)
    if not isinstance(value, str):
        raise RowError(f"`{column}` is not text (but {kind(value)})")
    if is_encoded_conversation(value):
        raise RowError(f"`{column}` is a conversation encoded as text")
    return value


def messages(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """The messages in ``column``, at least one, in any order of roles."""
    value = _present(row, column)
    if not isinstance(value, list):
        raise RowError(f"`{column}` is not a list of messages (but {kind(value)})")
    if not value:
        raise RowError(f"`{column}` is an empty list")
    return tuple(_message(item, column) for item in value)


def conversation(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """The messages in ``column``: an optional system turn, then user and assistant in turn."""
    found = messages(row, column)
    for i, message in enumerate(found[1:] if found[0]["role"] == "system" else found):
        if message["role"] != ("user", "assistant")[i % 2]:
            roles = ", ".join(m["role"] for m in found[:8])
            raise RowError(f"`{column}` does not alternate user and assistant from a user turn ({roles})")
        if message["role"] == "user" and not message["content"].strip():
            raise RowError(f"`{column}` has a user turn without text")
    return found


def prompt_and_response(row: Mapping[str, Any], column: str) -> tuple[tuple[Message, ...], str]:
    """A conversation cut before its last turn, which must be the assistant's."""
    turns = conversation(row, column)
    if turns[-1]["role"] != "assistant":
        raise RowError(f"`{column}` does not end with an assistant turn")
    return turns[:-1], turns[-1]["content"]


def scores(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """``score_chosen`` and ``score_rejected`` in the data's own unit, or two Nones where neither is given."""
    names = ("score_chosen", "score_rejected")
    missing = [name for name in names if name not in row]
    if len(missing) == 2:
        return None, None
    if missing:
        raise RowError(f"one score without the other (`{missing[0]}` is missing)")
    chosen, rejected = (_score(row[name], name) for name in names)
    return chosen, rejected


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    names = {type(None): "null", bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def is_encoded_conversation(value: str) -> bool:
    """Whether a text is the JSON of a list of messages."""
    return decode_conversation(value) is not None


def decode_conversation(value: str) -> list[Any] | None:
    """The list of messages that a text encodes as JSON, or None when it encodes something else."""
    if value.lstrip()[:1] != "[" or '"role"' not in value:
        return None
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if isinstance(decoded, list) and all(isinstance(item, dict) and "role" in item for item in decoded):
        return decoded
    return None


def _present(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise RowError(f"column `{column}` is missing")
    if row[column] is None:
        raise RowError(f"`{column}` is null")
    return row[column]


def _message(item: Any, column: str) -> Message:
    if not isinstance(item, dict):
        raise RowError(f"`{column}` holds something else than messages ({kind(item)})")
    role, content = item.get("role"), item.get("content")
    if role is None:
        raise RowError(f"`{column}` has a message without a role")
    if role not in ROLES:
        raise RowError(f"`{column}` has an unknown role ({shown(role)})")
    if not isinstance(content, str):
        raise RowError(f"`{column}` has a message whose content is not text (but {kind(content)})")
    return Message(role=role, content=content)


def _score(value: Any, name: str) -> float:
    # bool is a subclass of int, and text would compare "10.0" < "9.0".
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"`{name}` is not a number (but {kind(value)})")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError(f"`{name}` is not finite")
    return number
