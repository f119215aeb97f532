"""Parse lists of responses to a prompt, with a list of their scores or of their places in a ranking.

``prompt``, ``responses`` and ``scores`` (the higher the better) or ``ranks`` (1 is the best). RRHF's data have these
columns, and distilabel's ``generations`` and ``ratings``.
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import items, numbers, responses_to
from caldpo.data.ranked import RankedResponses
from caldpo.data.raw_row import RowError

COLUMNS = ("prompt", "responses")


def matches(row: Row) -> bool:
    """Match the column ``responses``, without responses of another format."""
    return "responses" in row and not {"chosen", "rejected", "completion"} & row.keys()


def parse(row: Row) -> RankedResponses:
    """Take scores as true rewards; without them, the lower its rank, the better is a response."""
    listed = items(row, "responses")
    prompt, responses = responses_to(row, "prompt", listed, "responses")
    if "scores" in row:
        return RankedResponses(prompt, responses, numbers(row, "scores", len(listed)), scored=True)
    if "ranks" in row:
        return RankedResponses(prompt, responses, [-rank for rank in numbers(row, "ranks", len(listed))])
    raise RowError("`responses` without `scores` or `ranks` (data.columns.scores=NAME maps a column)")
