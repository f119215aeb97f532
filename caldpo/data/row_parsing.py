"""Parse a raw row into a preference pair: name its columns, detect its format, settle what stands around the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from caldpo.data.columns import CUT, Columns, MappedRow, is_empty
from caldpo.data.formats import detect, formats
from caldpo.data.formats._fields import kind
from caldpo.data.formats.hh import is_transcript
from caldpo.data.pair import Message, PreferencePair
from caldpo.data.ranked import RankedCounts, RankedRule, pairs_by_rule
from caldpo.data.raw_row import RawRow, RowError, parsed, shown

# characters from which on two answers that begin with all of a prompt are no coincidence ("Hello", "Hello there!")
_CERTAIN_LENGTH = 20


def map_row(raw: RawRow, columns: Columns) -> MappedRow:
    """Give the columns of a row the names that formats read, or raise the row's own error."""
    if raw.error is not None:
        raise RowError(raw.error)
    if not isinstance(raw.value, dict):
        raise RowError(f"not an object (but {type(raw.value).__name__})")
    return columns.mapped(columns.of_table(raw.value) if raw.table is not None else raw.value)


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """The pairs of a row, to be settled one by one, and what they were made of."""

    pairs: list[PreferencePair]  # one, but for a row of several responses
    format: str
    ranked: RankedCounts | None = None  # of a row of several responses


def parse_row(row: MappedRow, origin: str = "", rule: RankedRule = "best_worst") -> ParsedRow:
    """Make the pairs of a row; ``rule`` says which where it has several responses."""
    name = detect(dict(row))
    made = formats()[name].parse(row)
    if isinstance(made, PreferencePair):
        return ParsedRow([replace(made, origin=origin)], name)
    pairs, counts = pairs_by_rule(made, rule)
    count = len(pairs)
    places = (f"{origin} ({place} of {count})" if count > 1 else origin for place in range(1, count + 1))
    return ParsedRow([replace(p, origin=place) for p, place in zip(pairs, places, strict=True)], name, counts)


def settle_pair(pair: PreferencePair, row: MappedRow) -> PreferencePair:
    """Settle what stands around the prompt of a pair of a row."""
    pair = add_context(cut_repeated_prompt(pair), row)
    remarks = (*row.remarks, *pair.remarks)
    if isinstance(pair.prompt, str) and not (pair.prompt[-1:].isspace() or pair.response[:1].isspace()):
        remarks = (*remarks, "rows whose response follows its prompt without a space")
    return replace(pair, remarks=remarks)


def cut_repeated_prompt(pair: PreferencePair) -> PreferencePair:
    """Cut a text prompt from the beginning of its responses, where it would stand twice in a sequence and bear loss.

    A prompt that is too short to tell whether it was repeated is an error.
    """
    if not isinstance(pair.prompt, str) or not pair.prompt.strip():
        return pair  # conversations mark where a prompt ends
    sides = {"chosen": pair.chosen} if pair.has_chosen else {}
    sides |= {"rejected": pair.rejected} if pair.has_rejected else {}
    rests: dict[str, Any] = {side: _after(pair.prompt, response) for side, response in sides.items()}
    if None in rests.values():
        return pair
    if not is_transcript(pair.prompt) and len(pair.prompt.strip()) < _CERTAIN_LENGTH:
        raise RowError("every response begins with the whole prompt, which would stand twice (cut it from them)")
    return replace(pair, **rests, remarks=(*pair.remarks, CUT))


def _after(prompt: str, response: str) -> str | None:
    """Return what follows the prompt in a response that begins with it; None for another response."""
    core, text = prompt.strip(), response.lstrip()
    if not text.startswith(core):
        return None
    rest = text[len(core) :]
    if not rest.strip() or (core[-1].isalnum() and rest[0].isalnum()):
        return None  # "Do" is no prompt of "Done"
    return rest.removeprefix(prompt[len(prompt.rstrip()) :])


def add_context(pair: PreferencePair, row: MappedRow) -> PreferencePair:
    """Add the system turn, tools and template variables that a row has in columns of their own.

    A text prompt in a row with a column for the system turn becomes a user turn, also where that column is blank, so
    that a data set has one form throughout; the space that joins its responses to the prompt is then left out.
    """
    system = row.get("system")
    tools, variables = _tools(row.get("tools")), _variables(row.get("chat_template_kwargs"))
    if system is not None and not isinstance(system, str):
        raise RowError(f"`system` is not text (but {kind(system)})")
    system = system or ""
    prompt = pair.prompt
    if isinstance(prompt, str):
        if tools or variables:
            raise RowError(f"`{'tools' if tools else 'chat_template_kwargs'}` is for messages, and the prompt is text")
        if not row.has("system"):
            return pair
        if is_transcript(prompt):
            if system.strip():
                raise RowError("`system` is for messages, and the prompt is a transcript")
            return pair
        prompt = (Message(role="user", content=prompt),)
        pair = replace(pair, chosen=pair.chosen.lstrip(" "), rejected=pair.rejected.lstrip(" "))
    if system.strip():
        if prompt[0]["role"] != "system":
            prompt = (Message(role="system", content=str(system)), *prompt)
        elif prompt[0]["content"].strip() != system.strip():
            raise RowError("`system` differs from the system turn of the conversation")
    return replace(pair, prompt=prompt, tools=tools, template_kwargs=variables)


def _tools(value: Any) -> list[dict[str, Any]] | None:
    if is_empty(value):
        return None
    tools = parsed(value) if isinstance(value, str) else value
    if is_empty(tools) and tools is not None:
        return None
    items = [parsed(item) if isinstance(item, str) else item for item in tools] if isinstance(tools, list) else [tools]
    if not items or not all(isinstance(item, dict) for item in items):
        raise RowError(f"`tools` is no list of tools (but {kind(value)})")
    return items


def _variables(value: Any) -> dict[str, Any] | None:
    if is_empty(value):
        return None
    variables = parsed(value) if isinstance(value, str) else value
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise RowError(f"`chat_template_kwargs` is no object (but {kind(value)})")
    if strange := next((name for name in variables if not name.isidentifier()), None):
        raise RowError(f"`chat_template_kwargs` has a name that no template can read ({shown(strange)})")
    return {name: item for name, item in variables.items() if item is not None} or None
