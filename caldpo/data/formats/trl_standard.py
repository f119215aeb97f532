"""Parse TRL's standard preference format: plain texts, with an explicit or an implicit prompt.

Texts follow each other character by character: ``"The sky is"`` and ``" blue."`` carry the space between them. Without
a ``prompt``, and without another column that could be one, the prompt is the longest common beginning of the responses,
cut back to the last place that splits no word. Such rows are counted.
https://huggingface.co/docs/trl/dataset_formats
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import may_be_prompt, scores, text
from caldpo.data.formats.hh import is_transcript
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError, shown_name

COLUMNS = ("chosen", "rejected")
SHARED = "rows whose prompt is their responses' shared beginning"


def matches(row: Row) -> bool:
    """Match text responses, and a prompt that is text or absent (then the responses are no HH transcripts)."""
    prompt, sides = row.get("prompt"), [row.get("chosen"), row.get("rejected")]
    if isinstance(prompt, list) or "summaries" in row or any(isinstance(side, list) for side in sides):
        return False
    if "prompt_id" in row:
        return all(isinstance(side, str) for side in sides)
    if prompt is None:
        return any(isinstance(side, str) for side in sides) and not any(map(is_transcript, sides))
    return "chosen" in row or "rejected" in row


def parse(row: Row) -> PreferencePair:
    """Take the texts as they are; find the prompt where it is implicit."""
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    if row.get("prompt") is not None:
        return PreferencePair(text(row, "prompt"), chosen, rejected, *scores(row))
    if "prompt" in row:
        raise RowError("`prompt` is null or empty")
    if others := may_be_prompt(row):
        name = shown_name(others[0])
        raise RowError(
            f"no `prompt`, and `{name}` could be it"
            f" (data.columns.prompt={name} takes it, data.columns.ignored=[{name}] does not)"
        )
    prompt = common_prompt(chosen, rejected)
    if not prompt.strip():
        raise RowError("no `prompt`, and chosen and rejected share no beginning that could be one")
    cut = chosen[len(prompt) :], rejected[len(prompt) :]
    return PreferencePair(prompt, *cut, *scores(row), remarks=(SHARED,))


def common_prompt(chosen: str, rejected: str) -> str:
    """Return the longest common beginning that splits no word and leaves both responses some text.

    >>> common_prompt("The sky is blue.", "The sky is black.")
    'The sky is'
    """
    # One character less than the shorter text, so that neither response is empty.
    most = max(min(len(chosen), len(rejected)) - 1, 0)
    longest = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    end = longest
    while end > 0 and any(_splits_word(side, end) for side in (chosen, rejected)):
        end -= 1
    if end > 0 and chosen[end - 1] == " ":
        end -= 1
    # Scripts without spaces have no such place: there the cut falls between two characters.
    return chosen[:end] if chosen[:end].strip() else chosen[:longest]


def _splits_word(text: str, at: int) -> bool:
    return text[at - 1].isalnum() and text[at].isalnum()
