"""Parse Reddit posts with their writer's summary: the demonstrations before the TL;DR comparisons.

Rows of UCL-DARK/openai-tldr-filtered: ``subreddit``, ``title``, ``post``, ``summary``. The prompt is that of
:mod:`caldpo.data.formats.tldr`, and a response begins with a space as theirs do.
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import is_demonstration, text
from caldpo.data.formats.tldr import PROMPT
from caldpo.data.pair import PreferencePair

COLUMNS = ("subreddit", "title", "post", "summary")


def matches(row: Row) -> bool:
    """Match the columns ``post`` and ``summary``, without responses of another format."""
    return "post" in row and "summary" in row and "completion" not in row and is_demonstration(row)


def parse(row: Row) -> PreferencePair:
    """Take the post as prompt, its summary as response."""
    fields = {name: text(row, name) for name in ("subreddit", "title", "post")}
    summary = text(row, "summary").strip()
    return PreferencePair(PROMPT.format(**fields), f" {summary}" if summary else "", "", demonstration=True)
