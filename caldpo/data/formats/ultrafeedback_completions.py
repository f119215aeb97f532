"""Parse UltraFeedback as it was collected: an instruction and four completions, each with its overall score.

Rows of openbmb/UltraFeedback: ``instruction``, ``completions`` of ``response``, ``overall_score`` and more. The score
is that by which UltraFeedback Binarized chose, too. Not read are the annotations, and ``custom_system_prompt``, with
which a completion was drawn: Binarized has prompts without it.
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import items, number, responses_to, text
from caldpo.data.ranked import RankedResponses
from caldpo.data.raw_row import RowError

COLUMNS = ("instruction", "completions")


def matches(row: Row) -> bool:
    """Match the column ``completions``, without responses of another format."""
    return "completions" in row and not {"chosen", "rejected", "completion", "responses"} & row.keys()


def parse(row: Row) -> RankedResponses:
    """Take the instruction as a user turn and each completion as the assistant's."""
    completions = items(row, "completions")
    if not all(isinstance(one, dict) and "overall_score" in one for one in completions):
        raise RowError("`completions` holds something other than objects with `response` and `overall_score`")
    turns = [{"role": "assistant", "content": text(one, "response")} for one in completions]
    prompt, responses = responses_to(row, "prompt" if "prompt" in row else "instruction", turns, "response")
    return RankedResponses(prompt, responses, [number(one, "overall_score") for one in completions], scored=True)
