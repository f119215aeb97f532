"""Parse TRL's conversational preference format, with an explicit or an implicit prompt.

Explicit: ``prompt`` is a list of messages, ``chosen`` and ``rejected`` each hold one assistant message. Implicit:
``chosen`` and ``rejected`` are whole conversations that differ in their last turn.
https://huggingface.co/docs/trl/dataset_formats
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import (
    conversation,
    has_other_responses,
    is_demonstration,
    messages,
    pair_of_turns,
    prompt_and_response,
    scores,
)
from caldpo.data.pair import Message, PreferencePair
from caldpo.data.raw_row import RowError

COLUMNS = ("chosen", "rejected")


def matches(row: Row) -> bool:
    """Match a list as prompt, or conversations without a prompt column."""
    prompt, sides = row.get("prompt"), [row.get("chosen"), row.get("rejected")]
    if "summaries" in row or is_demonstration(row) or has_other_responses(row):
        return False
    if prompt is None:
        return "prompt_id" not in row and any(isinstance(side, list) for side in sides)
    return isinstance(prompt, list)


def parse(row: Row) -> PreferencePair:
    """Take the prompt as messages and one assistant message per side."""
    if row.get("prompt") is None:
        prompt, chosen = prompt_and_response(row, "chosen")
        prompt_rejected, rejected = prompt_and_response(row, "rejected")
        if prompt != prompt_rejected:
            raise RowError("chosen and rejected answer different prompts")
        return pair_of_turns(prompt, chosen, rejected, scores(row))
    prompt = conversation(row, "prompt")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise RowError("`prompt` does not end with a user turn")
    return pair_of_turns(prompt, _response(row, "chosen"), _response(row, "rejected"), scores(row))


def _response(row: Row, column: str) -> Message:
    reply = messages(row, column)
    if len(reply) != 1 or reply[0]["role"] != "assistant":
        raise RowError(f"`{column}` must hold one assistant message ({', '.join(m['role'] for m in reply[:8])})")
    return reply[0]
