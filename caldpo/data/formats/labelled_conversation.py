"""Parse conversations whose last turn, the response, has a label: whether it is desirable.

ms-swift and LLaMA-Factory call this their format for KTO. As in :mod:`caldpo.data.formats.conversation`, all turns but
the last are the prompt.
"""

from __future__ import annotations

from caldpo.data.formats import Row, conversation
from caldpo.data.formats._fields import flag, is_unpaired
from caldpo.data.pair import PreferencePair, labelled

COLUMNS = ("messages", "label")


def matches(row: Row) -> bool:
    """Match the columns ``messages`` and ``label``, without a column of responses."""
    return is_unpaired(row, "messages") and not any(name in row for name in ("completion", "summary"))


def parse(row: Row) -> PreferencePair:
    """Take the last turn as the chosen response where the label is true, else as the rejected one."""
    return labelled(conversation.parse(row), flag(row, "label"))
