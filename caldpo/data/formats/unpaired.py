"""Parse TRL's unpaired preference format: a prompt, one response and whether it is desirable.

Rows of trl-lib/kto-mix-14k (messages) and argilla/distilabel-intel-orca-kto (texts), whose ``label`` is true or false.
Those of argilla/kto-mix-15k hold the prompt as text, and once more at the beginning of the conversation ``completion``.
https://huggingface.co/docs/trl/dataset_formats
"""

from __future__ import annotations

from caldpo.data.formats import Row, prompt_completion
from caldpo.data.formats._fields import flag, is_unpaired, pair_of_turns, prompt_and_response, text
from caldpo.data.pair import PreferencePair, labelled
from caldpo.data.raw_row import RowError

COLUMNS = ("prompt", "completion", "label")


def matches(row: Row) -> bool:
    """Match the columns ``completion`` and ``label``, without columns that compare responses."""
    return is_unpaired(row, "completion")


def parse(row: Row) -> PreferencePair:
    """Take the completion as the chosen response where the label is true, else as the rejected one."""
    desirable = flag(row, "label")
    if isinstance(row.get("prompt"), str) and isinstance(row["completion"], list):
        prompt, response = prompt_and_response(row, "completion")
        asked = text(row, "prompt").strip()
        if all(asked != turn["content"].strip() for turn in prompt if turn["role"] == "user"):
            raise RowError("`prompt` is no user turn of the conversation `completion`")
        return labelled(pair_of_turns(prompt, response), desirable)
    return labelled(prompt_completion.parse(row), desirable)
