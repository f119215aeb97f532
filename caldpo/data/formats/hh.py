"""Parse Anthropic HH transcripts: ``chosen`` and ``rejected`` as whole dialogues in plain text.

A dialogue reads ``\\n\\nHuman: ...\\n\\nAssistant: ...``. The prompt goes up to and including the last
``\\n\\nAssistant:``; prompt and response joined give back the transcript. Each side is cut by itself and the prompts
are compared: a cut at the chosen prompt's length would leave garbage where dialogues diverge at an earlier turn.

Bai et al. 2022, Training a Helpful and Harmless Assistant; the cut is the one of Rafailov et al. 2023.
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import scores, text
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError

COLUMNS = ("chosen", "rejected")
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def is_transcript(value: object) -> bool:
    """Whether a column's value is text with a turn marker in it."""
    return isinstance(value, str) and (HUMAN in value or ASSISTANT in value)


def matches(row: Row) -> bool:
    """Match a transcript on either side, and no prompt column."""
    sides = [row.get("chosen"), row.get("rejected")]
    if row.get("prompt") is not None or "prompt_id" in row or "summaries" in row:
        return False
    return any(map(is_transcript, sides)) and not any(isinstance(side, list) for side in sides)


def parse(row: Row) -> PreferencePair:
    """Cut each transcript after its last assistant marker."""
    prompt, chosen = split_transcript(text(row, "chosen"), "chosen")
    prompt_rejected, rejected = split_transcript(text(row, "rejected"), "rejected")
    if prompt != prompt_rejected:
        raise RowError("chosen and rejected answer different prompts")
    return PreferencePair(prompt, chosen, rejected, *scores(row))


def split_transcript(transcript: str, column: str) -> tuple[str, str]:
    """Split one transcript into prompt and response."""
    head, marker, response = transcript.rpartition(ASSISTANT)
    if not marker:
        raise RowError(f"`{column}` has no assistant turn")
    if HUMAN in response:
        raise RowError(f"`{column}` ends with a human turn")
    if HUMAN not in head:
        raise RowError(f"`{column}` has no human turn")
    return head + marker, response
