"""Parse conversations to imitate: the last turn of ``messages`` is the response, all before it the prompt.

Rows of HuggingFaceH4/ultrachat_200k and others of their kind. The loss covers the last turn alone, where recipes
that train on whole conversations have it cover all assistant turns.
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import is_demonstration, pair_of_turns, prompt_and_response
from caldpo.data.pair import PreferencePair

COLUMNS = ("messages",)


def matches(row: Row) -> bool:
    """Match the column ``messages``, without a column of responses."""
    return is_demonstration(row) and not any(name in row for name in ("completion", "summary"))


def parse(row: Row) -> PreferencePair:
    """Cut the conversation before its last turn."""
    return pair_of_turns(*prompt_and_response(row, "messages"))
