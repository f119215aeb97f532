"""Parse a chosen response with a list of rejected ones, as texts or as messages.

``score_chosen`` and a list ``score_rejected`` are true rewards, and then order the rejected responses; without them
these are tied, and only ``data.ranked=all`` makes pairs of more than the first.
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import has_several_rejected, items, number, numbers, responses_to
from caldpo.data.ranked import RankedResponses
from caldpo.data.raw_row import RowError

COLUMNS = ("chosen", "rejected")


def matches(row: Row) -> bool:
    """Match a list of responses in ``rejected``: of texts, or of lists of messages."""
    return has_several_rejected(row)


def parse(row: Row) -> RankedResponses:
    """Take the chosen response first, then the rejected ones in their order."""
    if row.get("chosen") is None:
        raise RowError("`chosen` is missing or null")
    rejected = items(row, "rejected")
    prompt, responses = responses_to(row, "prompt", [row["chosen"], *rejected], "rejected")
    if ("score_chosen" in row) != ("score_rejected" in row):
        raise RowError("one score without the other")
    if "score_chosen" not in row:
        return RankedResponses(prompt, responses, [1.0, *(0.0 for _ in rejected)])
    quality = [number(row, "score_chosen"), *numbers(row, "score_rejected", len(rejected))]
    if max(quality[1:]) > quality[0]:
        raise RowError("a rejected response has a higher score than the chosen one")
    return RankedResponses(prompt, responses, quality, scored=True)
