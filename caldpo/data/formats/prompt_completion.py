"""Parse TRL's prompt-completion format: a prompt and one response to imitate, as texts or as messages.

Rows with a ``label`` (TRL's unpaired preferences) are excluded: a bad response is not to be imitated.
https://huggingface.co/docs/trl/dataset_formats
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import is_demonstration, messages, pair_of_turns, text
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError

COLUMNS = ("prompt", "completion")


def matches(row: Row) -> bool:
    """Match the column ``completion``, without columns that compare or judge it."""
    return "completion" in row and is_demonstration(row)


def parse(row: Row) -> PreferencePair:
    """Take the completion as the response; conversations end before it."""
    if not isinstance(row.get("prompt"), list):
        return PreferencePair(text(row, "prompt"), text(row, "completion"), "", demonstration=True)
    reply = messages(row, "completion")
    if len(reply) != 1 or reply[0]["role"] != "assistant":
        raise RowError("`completion` is not one assistant turn")
    return pair_of_turns(messages(row, "prompt"), reply[0])
