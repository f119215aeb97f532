"""Parse TL;DR comparisons: a Reddit post, two summaries, and which of them a labeller chose.

Rows of openai/summarize_from_feedback (comparisons): ``info`` {post, title, subreddit, ...}, ``summaries``
[{text, ...}, {text, ...}], ``choice`` 0 or 1. The validation split also compares summaries of CNN/DailyMail articles
(``info.article``, no subreddit); they belong to another task and are left out.

Stiennon et al. 2020, Learning to summarize from human feedback; prompt and the space before a response are theirs.
"""

from __future__ import annotations

from typing import Any

from caldpo.data.formats import Row
from caldpo.data.formats._fields import kind, text
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError, shown

COLUMNS = ("info", "summaries", "choice")
PROMPT = "SUBREDDIT: r/{subreddit}\nTITLE: {title}\nPOST: {post}\nTL;DR:"


def matches(row: Row) -> bool:
    """Match the columns ``summaries`` and ``info``."""
    return "summaries" in row and "info" in row


def parse(row: Row) -> PreferencePair:
    """Take the post as prompt, the chosen summary and the other one as responses."""
    info, choice = row["info"], row.get("choice")
    if not isinstance(info, dict):
        raise RowError(f"`info` is not an object (but {kind(info)})")
    if info.get("article") is not None and info.get("subreddit") is None:
        raise RowError("a CNN/DailyMail article, no Reddit post", kind="filtered")
    fields = {name: text(info, name) for name in ("subreddit", "title", "post")}
    summaries = row["summaries"]
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise RowError("`summaries` is not a list of two")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise RowError(f"`choice` is neither 0 nor 1 ({shown(choice)})")
    choice = int(choice)  # a table with nulls elsewhere in the column gives 1.0
    responses = [_response(summary) for summary in summaries]
    return PreferencePair(PROMPT.format(**fields), responses[choice], responses[1 - choice])


def _response(summary: Any) -> str:
    if not isinstance(summary, dict):
        raise RowError(f"`summaries` holds something other than objects ({kind(summary)})")
    body = text(summary, "text").strip()
    return f" {body}" if body else ""  # a lone space would pass for a response with some text
