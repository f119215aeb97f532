"""Parse AlpacaFarm's preferences: an instruction, two outputs, and which of them an annotator preferred.

Rows of tatsu-lab/alpaca_farm (``alpaca_human_preference``, ``alpaca_gpt4_preference``): ``instruction``, ``input``
(may be blank), ``output_1``, ``output_2``, ``preference`` 1 or 2. Instruction and input are joined by a blank line.

Dubois et al. 2023, AlpacaFarm: A simulation framework for methods that learn from human feedback.
"""

from __future__ import annotations

from caldpo.data.formats import Row
from caldpo.data.formats._fields import number, text
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError

COLUMNS = ("instruction", "output_1", "output_2", "preference")


def matches(row: Row) -> bool:
    """Match the columns ``output_1`` and ``preference``, without responses of another format."""
    return "output_1" in row and "preference" in row and not {"chosen", "rejected", "summaries"} & row.keys()


def parse(row: Row) -> PreferencePair:
    """Take the instruction with its input as prompt, the preferred output and the other one as responses."""
    preferred = number(row, "preference")
    if preferred not in (1, 2):
        raise RowError(f"`preference` is neither 1 nor 2 ({preferred:g})")
    prompt = text(row, "instruction")
    if row.get("input") not in (None, ""):
        prompt = f"{prompt}\n\n{text(row, 'input')}"
    outputs = [text(row, "output_1"), text(row, "output_2")]
    return PreferencePair(prompt, outputs[int(preferred) - 1], outputs[2 - int(preferred)])
