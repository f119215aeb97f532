"""Parse Nectar: a transcript as prompt, and seven answers with their places in a ranking, 1 the best.

Rows of berkeley-nest/Nectar: ``prompt``, a transcript that ends with "Assistant: ", and ``answers`` of ``answer``,
``rank`` and ``model``. As in :mod:`caldpo.data.formats.hh`, the space after the last marker belongs to the responses.
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import items, number, text
from caldpo.data.formats.hh import is_transcript
from caldpo.data.ranked import RankedResponses
from caldpo.data.raw_row import RowError

COLUMNS = ("prompt", "answers")


def matches(row: Row) -> bool:
    """Match the column ``answers``, without responses of another format."""
    return "answers" in row and not {"chosen", "rejected", "completion", "completions", "responses"} & row.keys()


def parse(row: Row) -> RankedResponses:
    """Take each answer as a response; the lower its rank, the better."""
    prompt, answers = text(row, "prompt"), items(row, "answers")
    if not all(isinstance(answer, dict) and "rank" in answer for answer in answers):
        raise RowError("`answers` holds something other than objects with `answer` and `rank`")
    responses = [text(answer, "answer") for answer in answers]
    if is_transcript(prompt):
        prompt, responses = prompt.rstrip(" "), [f" {response.lstrip(' ')}" for response in responses]
    return RankedResponses(prompt, responses, [-number(answer, "rank") for answer in answers])
