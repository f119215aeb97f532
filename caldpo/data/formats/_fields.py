"""Read and check single columns, for all formats. Each check raises RowError with a fixed phrase."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from caldpo.data.pair import Message, PreferencePair
from caldpo.data.raw_row import Cell, RowError, looks_encoded, shown

ROLES = ("system", "user", "assistant", "tool")
# columns of responses that were compared or judged
_COMPARED = frozenset(("chosen", "rejected", "summaries", "label", "output_1"))
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}  # in cells of text
_LISTED = frozenset(("responses", "completions", "answers"))  # columns of several responses
_DEMONSTRATED = frozenset(("messages", "completion", "summary"))  # columns of a single response to imitate
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of an assistant's reasoning
_UNREAD = ("images", "image", "audio", "video", "function_call")  # of a message, which change its meaning
# names of columns with the source of a row, its writer or the reasons of its judge
_METADATA = re.compile(
    r"(?:^|[_-])(?:id|ids|source|origin|dataset|split|subset|config|model|name|lang|language|category|type|domain|"
    r"topic|tag|tags|label|labels|url|date|time|timestamp|license|annotator|worker|reason|rationale|explanation|"
    r"feedback|critique|comment|status|system|principle|completion|response)(?:$|[_-])",
    re.IGNORECASE,
)
# endings of names of prompts, whatever comes before: `model_prompt`, and not `prompt_id`
_ASKS = re.compile(
    r"(?:^|[_-])(?:prompt|question|query|instruction|input|problem|post|article|document|passage|dialog|dialogue|"
    r"conversation)s?$",
    re.IGNORECASE,
)
_FOLLOWS = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool", "user", "assistant"),
    "tool": ("tool", "assistant"),
}


def is_demonstration(row: Mapping[str, Any]) -> bool:
    """Whether a row's columns have a response to imitate, and none that was compared or judged."""
    return not _DEMONSTRATED.isdisjoint(row) and _COMPARED.isdisjoint(row) and _LISTED.isdisjoint(row)


def is_unpaired(row: Mapping[str, Any], response: str) -> bool:
    """Whether a row has one response, in this column, and a label."""
    return "label" in row and response in row and (_COMPARED - {"label"}).isdisjoint(row)


def has_other_responses(row: Mapping[str, Any]) -> bool:
    """Whether a row has responses other than one chosen and one rejected: one with a label, or several."""
    if "chosen" in row or "rejected" in row:
        return has_several_rejected(row)
    return not _LISTED.isdisjoint(row) or is_unpaired(row, "completion") or is_unpaired(row, "messages")


def has_several_rejected(row: Mapping[str, Any]) -> bool:
    """Whether a row's ``rejected`` is a list of responses, each text or turns."""
    rejected = row.get("rejected")
    if not isinstance(rejected, list) or not rejected or "summaries" in row:
        return False
    return all(isinstance(one, str) for one in rejected) or all(isinstance(one, list) for one in rejected)


def text(row: Mapping[str, Any], column: str) -> str:
    """Return the text in ``column``; refuse a conversation encoded as text, so that JSON is not trained on."""
    value = _present(row, column)
    if not isinstance(value, str):
        raise RowError(f"`{column}` is not text (but {kind(value)})")
    if looks_encoded(value):
        raise RowError(f"`{column}` is a conversation encoded as text")
    return str(value)


def messages(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """Return the messages in ``column``, at least one, in any order of roles."""
    value = _present(row, column)
    if not isinstance(value, list):
        raise RowError(f"`{column}` is not a list of messages (but {kind(value)})")
    if not value:
        raise RowError(f"`{column}` is an empty list")
    return tuple(_message(item, column) for item in value)


def conversation(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """Return the messages in ``column``: an optional system turn, then user and assistant alternating.

    Tool calls of an assistant are followed by the tools' answers and another assistant turn.
    """
    turns = messages(row, column)
    before = "system"
    for message in turns[1:] if turns[0]["role"] == "system" else turns:
        role = message["role"]
        if role not in _FOLLOWS[before]:
            roles = ", ".join(m["role"] for m in turns[:8])
            raise RowError(f"`{column}` does not alternate user and assistant from a user turn ({roles})")
        if role == "user" and not message["content"].strip():
            raise RowError(f"`{column}` has a user turn without text")
        before = "call" if message.get("tool_calls") else role
    return turns


def prompt_and_response(row: Mapping[str, Any], column: str) -> tuple[tuple[Message, ...], Message]:
    """Cut a conversation before its last turn, which must be the assistant's."""
    turns = conversation(row, column)
    if turns[-1]["role"] != "assistant":
        raise RowError(f"`{column}` does not end with an assistant turn")
    return turns[:-1], turns[-1]


def scores(
    row: Mapping[str, Any], chosen: str = "score_chosen", rejected: str = "score_rejected"
) -> tuple[float | None, float | None]:
    """Return the scores in two columns in the data's own unit, or two Nones where neither is given."""
    names = (chosen, rejected)
    missing = [name for name in names if name not in row]
    if len(missing) == 2:
        return None, None
    if missing:
        raise RowError(f"one score without the other (`{missing[0]}` is missing)")
    return number(row, chosen), number(row, rejected)


def number(row: Mapping[str, Any], column: str) -> float:
    """Return the finite number in ``column``; in a table without types, parse it from text."""
    value = row[column]
    if isinstance(value, Cell):
        try:
            value = float(value)
        except ValueError:
            raise RowError(f"`{column}` is not a number (but text)") from None
    # bool is a subclass of int, and text would compare "10.0" < "9.0".
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"`{column}` is not a number (but {kind(value)})")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise RowError(f"`{column}` is not finite")
    return result


def flag(row: Mapping[str, Any], column: str) -> bool:
    """Return the truth value in ``column``: true or false, 1 or 0; in a table without types, as text."""
    value = _present(row, column)
    if isinstance(value, Cell):
        value = _LABELS.get(value.strip().lower(), value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise RowError(f"`{column}` is neither true nor false, 1 nor 0 ({shown(value)})")


def items(row: Mapping[str, Any], column: str) -> list[Any]:
    """Return the list in ``column``, which is not empty."""
    value = _present(row, column)
    if not isinstance(value, list):
        raise RowError(f"`{column}` is not a list (but {kind(value)})")
    if not value:
        raise RowError(f"`{column}` is an empty list")
    return value


def numbers(row: Mapping[str, Any], column: str, count: int) -> list[float]:
    """Return the finite numbers in the list of ``column``, one for each of ``count`` responses."""
    values = items(row, column)
    if len(values) != count:
        raise RowError(f"`{column}` has another length than the responses ({len(values)} for {count})")
    return [number({column: value}, column) for value in values]


def responses_to(
    row: Mapping[str, Any], prompt: str, responses: Sequence[Any], column: str
) -> tuple[str | tuple[Message, ...], Sequence[str] | Sequence[Message]]:
    """Return the prompt in a column and responses to it, in matching shapes: all text, or all turns.

    A response is text, a turn of the assistant, or a list of one such. Where any of them or the prompt is turns, texts
    become turns.
    """
    asked: str | tuple[Message, ...]
    asked = conversation(row, prompt) if isinstance(row.get(prompt), list) else text(row, prompt)
    if isinstance(asked, str) and all(isinstance(one, str) for one in responses):
        return asked, [text({column: one}, column) for one in responses]
    turns = (Message(role="user", content=asked),) if isinstance(asked, str) else asked
    if turns[-1]["role"] not in ("user", "tool"):
        raise RowError(f"`{prompt}` does not end with a user turn")
    return turns, [_reply(one, column) for one in responses]


def _reply(response: Any, column: str) -> Message:
    if isinstance(response, str):
        return Message(role="assistant", content=text({column: response}, column))
    reply = messages({column: response if isinstance(response, list) else [response]}, column)
    if len(reply) != 1 or reply[0]["role"] != "assistant":
        raise RowError(f"`{column}` must hold one assistant message for each response")
    return reply[0]


def pair_of_turns(
    prompt: tuple[Message, ...],
    chosen: Message,
    rejected: Message | None = None,
    both: tuple[float | None, float | None] = (None, None),
) -> PreferencePair:
    """Build the pair of a conversation and two versions of its next turn, or one to imitate."""
    return PreferencePair(
        prompt,
        chosen["content"],
        "" if rejected is None else rejected["content"],
        *both,
        demonstration=rejected is None,
        chosen_extra=_extra(chosen),
        rejected_extra=None if rejected is None else _extra(rejected),
    )


def may_be_prompt(row: Mapping[str, Any]) -> list[str]:
    """List columns of text or turns, other than the responses, that could be the prompt of a row without one."""
    return [
        name
        for name, value in row.items()
        if name not in ("prompt", "chosen", "rejected")
        and _is_prose(value)
        and (_ASKS.search(name) or not _METADATA.search(name))
    ]


def _is_prose(value: Any) -> bool:
    """Whether a value is a turn, has more than one word, or letters of a script that has no spaces between words."""
    if isinstance(value, list):
        return any(map(_is_prose, value))
    if isinstance(value, Mapping):
        turn = {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
        return turn or any(_is_prose(value.get(name)) for name in ("content", "value", "text"))
    return isinstance(value, str) and (len(value.split()) > 1 or any(unicodedata.category(c) == "Lo" for c in value))


def kind(value: object) -> str:
    """Name the type of a JSON value."""
    names = {type(None): "null", bool: "a boolean", str: "text", Cell: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _present(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise RowError(f"column `{column}` is missing")
    value = row[column]
    if value is None:
        raise RowError(f"`{column}` is null")
    return value


def _message(item: Any, column: str) -> Message:
    if not isinstance(item, dict):
        raise RowError(f"`{column}` holds something other than messages ({kind(item)})")
    role, content = item.get("role"), item.get("content")
    if role is None:
        raise RowError(f"`{column}` has a message without a role")
    if role not in ROLES:
        raise RowError(f"`{column}` has an unknown role ({shown(role)})")
    calls = _tool_calls(item, column)
    if content is None and calls:
        content = ""  # OpenAI's form of a turn that only calls tools
    if not isinstance(content, str):
        raise RowError(f"`{column}` has a message whose content is not text (but {kind(content)})")
    message = Message(role=role, content=str(content))
    if calls:
        message["tool_calls"] = calls
    for name in ("name", "tool_call_id"):
        if isinstance(item.get(name), str):
            message[name] = str(item[name])
    if reasoning := next((item[name] for name in REASONING if item.get(name) is not None), None):
        if not isinstance(reasoning, str):
            raise RowError(f"`{column}` has a message whose reasoning is not text (but {kind(reasoning)})")
        message["reasoning_content"] = str(reasoning)
    if lost := next((name for name in _UNREAD if item.get(name) not in (None, "", [], {})), None):
        raise RowError(f"`{column}` has a message with `{lost}`, which is not read")
    return message


def _tool_calls(item: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    calls = item.get("tool_calls")
    if calls in (None, []):
        return []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"`{column}` has a message whose tool_calls are no list of objects")
    if item.get("role") != "assistant":
        raise RowError(f"`{column}` has tool_calls in a turn that is not the assistant's")
    return calls


def _extra(message: Message) -> dict[str, Any] | None:
    """Return the fields of a response's message other than text and role."""
    rest = {name: value for name, value in message.items() if name not in ("role", "content", "name")}
    return rest or None
