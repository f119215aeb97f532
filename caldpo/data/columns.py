"""Map columns to roles, by setting or by the names that published data sets use.

A row keeps all its columns and gets the names that formats read beside them: ``question`` is available as ``prompt``,
too. Reads are recorded, so that every column that nobody read can be named. No heavy imports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from caldpo.config.signatures import validated
from caldpo.data.raw_row import TURNS, Cell, RowError, as_turns, decoded, looks_encoded, without_nulls
from caldpo.errors import CaldpoError

# Names of the prompt where there is no column `prompt`; `instruction` brings Alpaca's `input` with it.
PROMPTS = ("question", "query", "instruction", "input")
SCORES = (  # pairs of columns; one without the other is no score of the pair
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("score-chosen", "score-rejected"),
)
USUAL_LISTS = (("responses", "generations"), ("scores", "ratings"), ("ranks", "rank"))  # roles by other names
SYSTEMS = ("system", "system_prompt", "system_message")
# What a text model or a format cannot take, and what cannot be dropped from a row without changing its meaning.
MEANING = (
    *("images", "image", "audio", "audios", "video", "videos"),
    *("tool_calls", "functions", "function_call", "documents", "context", "history"),
)

# columns of responses, beside which a column with a usual name is the prompt
_ANSWERS = frozenset(("completion", "output", "output_1", "responses", "generations", "completions", "answers"))
_TURN_TYPES = (list, dict, Cell)  # of conversations, or of what may turn out to be one
_MAX_LAYOUTS = 1000  # column layouts remembered

# what was done to rows, worded to follow a count
CUT = "rows whose prompt was cut from the beginning of their responses"


@validated
@dataclass
class Columns:
    """The mapping from columns to roles; roles that are not set go by the usual names.

    Args:
        prompt: text or messages; several columns of text are joined by blank lines.
        chosen: the preferred response.
        rejected: the dispreferred one.
        completion: the one response of a row, to imitate or with a label.
        label: whether that response is desirable.
        messages: a conversation to imitate, of which the last turn is the response.
        system: text of a system turn.
        tools: a list of tools, as JSON or as objects.
        chat_template_kwargs: variables for the chat template.
        score_chosen, score_rejected: true rewards of the two responses.
        responses: several responses to a prompt.
        ranks, scores: their places in a ranking, 1 the best; their true rewards.
        ignored: columns left out on purpose, and not reported as unread.
    """

    prompt: str | list[str] | None = None
    chosen: str | None = None
    rejected: str | None = None
    completion: str | None = None
    messages: str | None = None
    system: str | None = None
    tools: str | None = None
    chat_template_kwargs: str | None = None
    score_chosen: str | None = None
    score_rejected: str | None = None
    label: str | None = None
    responses: str | None = None
    ranks: str | None = None
    scores: str | None = None
    ignored: Sequence[str] = ()

    def __post_init__(self) -> None:
        roles = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "ignored"}
        self._named = {r: [names] if isinstance(names, str) else list(names) for r, names in roles.items() if names}
        _refuse_twice(self._named)
        own = (*self._named.get("prompt", ()), *self._named.get("system", ()))
        self._asking = frozenset({"prompt", *PROMPTS, *SYSTEMS, *own})  # may hold the prompt, or a system turn
        self._sources_by_columns: dict[tuple[str, ...], dict[str, list[str]]] = {}  # most rows have the same columns

    def mapped(self, row: Mapping[str, Any]) -> MappedRow:
        """Return the row under the names that formats read.

        Null means "not given", except for a prompt or a response, whose absence the format reports.

        Raises:
            RowError: a column that a setting names is not there; two columns could be the prompt; a conversation is
                encoded where it cannot be decoded.
        """
        columns = {name: value for name, value in row.items() if name not in self.ignored} if self.ignored else row
        names = tuple(columns)
        if names not in self._sources_by_columns:
            if len(self._sources_by_columns) >= _MAX_LAYOUTS:
                self._sources_by_columns.clear()
            self._sources_by_columns[names] = self._sources(columns)
        sources = dict(self._sources_by_columns[names])
        whole = dict(columns)
        for role, own in sources.items():
            whole[role] = _joined(columns, own)
        turns = [name for name in TURNS if isinstance(whole.get(name), _TURN_TYPES)]
        remarks = _settle_turns(whole, sources, turns) if turns else ()
        return MappedRow(_without_missing(whole), columns, sources, remarks)

    def of_table(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Drop the nulls of a table's row, those inside its cells included, and decode conversations held as text.

        The null of a column that may hold the prompt or a system turn stays: its absence is a fault of the row. Many a
        table with conversations has been through csv, which can only hold them as text.
        """
        cells = {name: without_nulls(value) for name, value in row.items() if value is not None or name in self._asking}
        for name in TURNS:
            if isinstance(cells.get(name), str):
                with contextlib.suppress(RowError):  # left as text, which the format refuses
                    cells[name] = decoded(name, cells[name])
        return cells

    def roles(self, columns: Sequence[str]) -> list[str]:
        """List the names that formats may find in rows with these columns; raises as :meth:`mapped` does."""
        row = dict.fromkeys((name for name in columns if name not in self.ignored), "")
        return [*row, *self._sources(row)]

    def _sources(self, row: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the columns of each role that does not go by its own name."""
        for role, names in self._named.items():
            for name in names:
                if name not in row:
                    raise RowError(f"column `{name}` is missing, which data.columns.{role} names")
        sources = dict(self._named)
        compared = "chosen" in row or "chosen" in sources or "rejected" in row or "rejected" in sources
        if "prompt" not in row and "prompt" not in sources:
            usual = _usual_prompt(row)
            if usual and (compared or _ANSWERS & (row.keys() | sources.keys())):
                sources["prompt"] = usual
        if not compared and "instruction" in row and "output" in row and not {"completion", "output_1"} & row.keys():
            sources.setdefault("completion", ["output"])
        if not compared:
            for role, name in USUAL_LISTS:
                if name in row and role not in row:
                    sources.setdefault(role, [name])
        if not {"score_chosen", "score_rejected"} & (row.keys() | sources.keys()):
            for chosen, rejected in SCORES:
                if chosen in row and rejected in row:
                    sources["score_chosen"], sources["score_rejected"] = [chosen], [rejected]
                    break
        if "system" not in sources and (systems := [name for name in SYSTEMS if name in row]):
            sources["system"] = systems[:1]
        return sources


class MappedRow(dict[str, Any]):
    """A row under the names that formats read, which records which of its columns were read.

    Args:
        values: of the row.
        columns: of the row itself.
        sources: the columns of each role that goes by another name.
        remarks: what was done to the row, in fixed phrases.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        columns: Mapping[str, Any],
        sources: Mapping[str, list[str]],
        remarks: tuple[str, ...] = (),
    ) -> None:
        super().__init__(values)
        self.columns, self.remarks, self._sources = columns, remarks, sources
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a column, which counts as read."""
        self._read.add(name)
        return super().get(name, default)

    def has(self, role: str) -> bool:
        """Whether the row has a column for this role, null or not."""
        return role in self.columns or role in self._sources

    @property
    def unread(self) -> list[str]:
        """The columns that hold something and were not read, sorted."""
        renamed = self._sources.keys()
        read = (self._read - renamed).union(*(self._sources[role] for role in self._read & renamed))
        return sorted(name for name in self.columns.keys() - read if not is_empty(self.columns[name]))


def require_meaning(unread: Sequence[str]) -> None:
    """Refuse a row with an unread column that changes the meaning of the row."""
    if lost := [name for name in unread if name in MEANING]:
        raise RowError(f"`{lost[0]}` is not read, and changes what the row means (see data.columns.ignored)")


def is_empty(value: Any) -> bool:
    """Whether a value is null, blank text, an empty list or object."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {}, ())


def _refuse_twice(named: Mapping[str, Sequence[str]]) -> None:
    """Refuse one column for two roles: a response as its own prompt, or compared with itself."""
    roles: dict[str, str] = {}
    for role, names in named.items():
        for name in names:
            if (other := roles.setdefault(name, role)) != role:
                raise CaldpoError(
                    f"names the same column as data.columns.{other}",
                    key=f"data.columns.{role}",
                    value=name,
                    remedy="give each role a column of its own",
                )


def _usual_prompt(row: Mapping[str, Any]) -> list[str]:
    """Return the column that is the prompt by its usual name, or none."""
    names = [name for name in PROMPTS if name in row]
    if "instruction" in names and "input" in names:  # Alpaca's
        names.remove("input")
    if len(names) > 1:
        raise RowError(f"`{names[0]}` and `{names[1]}` could be the prompt (name one with data.columns.prompt)")
    if names == ["instruction"] and "input" in row:
        return ["instruction", "input"]
    return names


def _joined(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the value of one column, or join several columns of text by blank lines."""
    if len(names) == 1:
        return row[names[0]]
    parts = [row[name] for name in names if not is_empty(row[name])]
    if any(not isinstance(part, str) for part in parts):
        raise RowError(f"`{names[0]}` and `{names[1]}` cannot be joined, as one of them is not text")
    if is_empty(row[names[0]]):
        return None
    return "\n\n".join(parts)


def _settle_turns(row: dict[str, Any], sources: dict[str, list[str]], turns: Sequence[str]) -> tuple[str, ...]:
    """Bring the columns ``turns``, which are no plain text, into the form that formats read; return remarks on it."""
    for name in turns:  # under a name of its own, a cell is still text
        if isinstance(row[name], Cell):
            row[name] = decoded(name, row[name])
    if isinstance(row.get("conversations"), list) and "conversations" not in sources:
        _place_conversation(row, sources)
    for name in TURNS:
        if name in row:
            row[name] = as_turns(name, row[name])
    return _settle_shapes(row, sources)


def _place_conversation(row: dict[str, Any], sources: dict[str, list[str]]) -> None:
    """Take ShareGPT's ``conversations`` as the prompt of responses beside it, or as a conversation to imitate."""
    compared = "chosen" in row or "rejected" in row
    role = "prompt" if compared else "messages"
    if role not in row and "completion" not in row:
        row[role] = row["conversations"]
        sources[role] = ["conversations"]


def _settle_shapes(row: dict[str, Any], sources: dict[str, list[str]]) -> tuple[str, ...]:
    """Bring prompt and responses into matching shapes where that is unambiguous; return remarks on what was done."""
    sides = [name for name in ("chosen", "rejected", "completion") if row.get(name) is not None]
    if sides:
        _answer_turns(row, sources, sides)
    answers = [row[name] for name in sides]
    if not answers or not all(isinstance(answer, list) for answer in answers):
        return ()
    alone = all(len(answer) == 1 for answer in answers)
    if alone and "prompt" not in row and isinstance(row.get("messages"), list):
        row["prompt"], sources["prompt"] = row["messages"], ["messages"]
    prompt = row.get("prompt")
    if alone and isinstance(prompt, str) and prompt.strip():
        row["prompt"] = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt or any(answer[:-1] != prompt for answer in answers):
        return ()
    row.update({name: row[name][-1:] for name in sides})
    return (CUT,)


def _answer_turns(row: dict[str, Any], sources: dict[str, list[str]], sides: Sequence[str]) -> None:
    """Turn texts that answer messages into turns of the assistant."""
    asked = row.get("prompt" if "prompt" in row else "messages")
    last = asked[-1] if isinstance(asked, list) and asked else None
    if not isinstance(last, dict) or last.get("role") not in ("user", "tool"):
        return
    if any(not isinstance(row[name], str) or looks_encoded(row[name]) for name in sides):
        return
    if "prompt" not in row:
        row["prompt"], sources["prompt"] = asked, ["messages"]
    row.update({name: [{"role": "assistant", "content": str(row[name])}] for name in sides})


def _without_missing(row: dict[str, Any]) -> dict[str, Any]:
    """Drop columns that are not given; a null prompt or response stays, for the format to report."""
    if None not in row.values():
        return row
    responses = [name for name in ("chosen", "rejected") if row.get(name) is not None]
    stay = {"prompt", "chosen", "rejected"} if responses else {"prompt"}
    return {name: value for name, value in row.items() if value is not None or name in stay}
