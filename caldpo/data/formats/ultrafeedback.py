"""Parse UltraFeedback Binarized: two conversations, the prompt once more as text, and a score for each response.

Rows of HuggingFaceH4/ultrafeedback_binarized. The conversations decide; ``prompt`` must be one of their user turns,
which catches columns out of step. ``prompt_id`` and ``messages`` are not read.
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import (
    has_other_responses,
    is_demonstration,
    pair_of_turns,
    prompt_and_response,
    scores,
    text,
)
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError

COLUMNS = ("chosen", "rejected")


def matches(row: Row) -> bool:
    """Match a text prompt (or its id) beside conversations."""
    prompt, sides = row.get("prompt"), [row.get("chosen"), row.get("rejected")]
    if isinstance(prompt, list) or "summaries" in row or is_demonstration(row) or has_other_responses(row):
        return False
    if all(isinstance(side, str) for side in sides):
        return False
    return "prompt_id" in row or (prompt is not None and any(isinstance(side, list) for side in sides))


def parse(row: Row) -> PreferencePair:
    """Take all turns but the last as prompt, the last assistant turn of each side as its response."""
    prompt, chosen = prompt_and_response(row, "chosen")
    prompt_rejected, rejected = prompt_and_response(row, "rejected")
    if prompt != prompt_rejected:
        raise RowError("chosen and rejected answer different prompts")
    if row.get("prompt") is not None:
        asked = text(row, "prompt").strip()
        if all(asked != turn["content"].strip() for turn in prompt if turn["role"] == "user"):
            raise RowError("`prompt` is no user turn of the conversations")
    return pair_of_turns(prompt, chosen, rejected, scores(row))
