"""Which column of a row plays which role, by setting or by the names that published data sets use.

A row keeps all its columns and gets the names that formats read beside them: ``question`` is there as ``prompt``, too.
What a format reads of it is watched, so that every column that nobody read can be named. No heavy imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from caldpo.config.signatures import validated
from caldpo.data.cell_parsing import TURNS, Cell, as_turns, decoded, looks_encoded
from caldpo.data.raw_row import RowError
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
SYSTEMS = ("system", "system_prompt", "system_message")
# What a text model or a format cannot take, and what nobody may drop from a row without changing its meaning.
MEANING = (
    *("images", "image", "audio", "audios", "video", "videos"),
    *("tool_calls", "functions", "function_call", "documents", "context", "history"),
)

# what was done to rows, in words that a count goes before
CUT = "rows whose prompt was cut from the beginning of their responses"


class Columns:
    """The mapping from columns to roles; what is not set goes by the usual names.

    Args:
        prompt: what is asked, text or messages; several columns of text are joined by blank lines.
        chosen: the preferred response.
        rejected: the dispreferred one.
        completion: the one response of a row to imitate.
        messages: a conversation to imitate, of which the last turn is the response.
        system: text of a system turn.
        tools: a list of tools, as JSON or as objects.
        chat_template_kwargs: variables for the chat template.
        score_chosen, score_rejected: true rewards of the two responses.
        ignored: columns that are left out on purpose, and not spoken of.
    """

    @validated
    def __init__(
        self,
        prompt: str | list[str] | None = None,
        chosen: str | None = None,
        rejected: str | None = None,
        completion: str | None = None,
        messages: str | None = None,
        system: str | None = None,
        tools: str | None = None,
        chat_template_kwargs: str | None = None,
        score_chosen: str | None = None,
        score_rejected: str | None = None,
        ignored: Sequence[str] = (),
    ) -> None:
        self.ignored = frozenset(ignored)
        named = {
            "prompt": [prompt] if isinstance(prompt, str) else prompt,
            "chosen": chosen,
            "rejected": rejected,
            "completion": completion,
            "messages": messages,
            "system": system,
            "tools": tools,
            "chat_template_kwargs": chat_template_kwargs,
            "score_chosen": score_chosen,
            "score_rejected": score_rejected,
        }
        self.named: dict[str, list[str]] = {
            role: [names] if isinstance(names, str) else names for role, names in named.items() if names
        }
        _refuse_twice(self.named)

    def mapped(self, row: Mapping[str, Any]) -> MappedRow:
        """The row under the names that formats read.

        Null means "not given", but for a prompt or a response, whose lack is for the format to name.

        Raises:
            RowError: a column that a setting names is not there; two columns could be the prompt; a conversation is
                encoded where it cannot be decoded.
        """
        kept = {name: value for name, value in row.items() if name not in self.ignored}
        sources = self._sources(kept)
        roles = {role: _joined(kept, names) for role, names in sources.items()}
        whole = {**kept, **roles}
        for name in TURNS:  # under a name of its own, a cell is text still
            if isinstance(whole.get(name), Cell):
                whole[name] = decoded(name, whole[name])
        if isinstance(whole.get("conversations"), list) and "conversations" not in sources:
            _place_conversation(whole, sources)
        for name in TURNS:
            if name in whole:
                whole[name] = as_turns(name, whole[name])
        remarks = _settle_shapes(whole, sources)
        return MappedRow(_without_nulls(whole), kept, sources, remarks)

    @property
    def may_ask(self) -> frozenset[str]:
        """Names of columns that may hold the prompt, or a system turn."""
        own = (*self.named.get("prompt", ()), *self.named.get("system", ()))
        return frozenset({"prompt", *PROMPTS, *SYSTEMS, *own})

    def roles(self, columns: Sequence[str]) -> list[str]:
        """The names that formats may find in rows with these columns.

        Raises:
            RowError: a column that a setting names is not there; two columns could be the prompt.
        """
        row = dict.fromkeys((name for name in columns if name not in self.ignored), "")
        return [*row, *(role for role in self._sources(row) if role not in row)]

    def _sources(self, row: Mapping[str, Any]) -> dict[str, list[str]]:
        """The columns that each role is taken from, where it does not have the role's own name."""
        for role, names in self.named.items():
            for name in names:
                if name not in row:
                    raise RowError(f"column `{name}` is missing, which data.columns.{role} names")
        found = dict(self.named)
        compared = "chosen" in row or "chosen" in found or "rejected" in row or "rejected" in found
        if "prompt" not in row and "prompt" not in found:
            usual = _usual_prompt(row)
            if usual and (compared or "completion" in found or {"completion", "output", "output_1"} & row.keys()):
                found["prompt"] = usual
        if not compared and "instruction" in row and "output" in row and not {"completion", "output_1"} & row.keys():
            found.setdefault("completion", ["output"])
        if not {"score_chosen", "score_rejected"} & (row.keys() | found.keys()):
            for both in SCORES:
                if all(name in row for name in both):
                    found["score_chosen"], found["score_rejected"] = [both[0]], [both[1]]
                    break
        if "system" not in found and (systems := [name for name in SYSTEMS if name in row]):
            found["system"] = systems[:1]
        return found


_IN_FORCE: ContextVar[Columns] = ContextVar("columns")


@contextmanager
def reading_with(columns: Columns) -> Iterator[None]:
    """What sources ask about columns inside is answered by this mapping."""
    token = _IN_FORCE.set(columns)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def in_force() -> Columns:
    """The mapping with which a split is being read; the usual names where none is."""
    return _IN_FORCE.get(None) or Columns()


class MappedRow(dict[str, Any]):
    """A row that knows which of its columns were read.

    Args:
        values: under the names that formats read.
        columns: the row's own.
        sources: the columns of each role that was found under another name.
        remarks: what was done to it, in fixed phrases.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        columns: Mapping[str, Any],
        sources: Mapping[str, list[str]],
        remarks: tuple[str, ...] = (),
    ) -> None:
        super().__init__(values)
        self.columns, self.remarks, self._sources, self._read = columns, remarks, sources, set[str]()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As a dictionary's; the column counts as read."""
        self._read.add(name)
        return super().get(name, default)

    def has(self, role: str) -> bool:
        """Whether the row has a column for this role, be it null."""
        return role in self.columns or role in self._sources

    @property
    def unread(self) -> list[str]:
        """The columns that hold something and that nobody read, sorted."""
        seen = {name for role in self._read for name in self._sources.get(role, [role])}
        return sorted(name for name, value in self.columns.items() if name not in seen and not is_empty(value))


def require_meaning(unread: Sequence[str]) -> None:
    """Refuse a row of which a column was not read that changes what the row means.

    Raises:
        RowError: naming it.
    """
    lost = [name for name in unread if name in MEANING]
    if lost:
        raise RowError(f"`{lost[0]}` is not read, and changes what the row means (see data.columns.ignored)")


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, blank text, an empty list or object."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {}, ())


def _refuse_twice(named: Mapping[str, Sequence[str]]) -> None:
    """Refuse one column for two roles: a response that is its own prompt, or that is compared with itself."""
    roles: dict[str, str] = {}
    for role, names in named.items():
        for name in names:
            if (other := roles.setdefault(name, role)) != role:
                raise CaldpoError(
                    f"names the column of data.columns.{other} once more",
                    key=f"data.columns.{role}",
                    value=name,
                    remedy="give each role a column of its own",
                )


def _usual_prompt(row: Mapping[str, Any]) -> list[str]:
    """The column that is the prompt by its usual name, or none."""
    found = [name for name in PROMPTS if name in row]
    if "instruction" in found and "input" in found:  # Alpaca's
        found.remove("input")
    if len(found) > 1:
        raise RowError(f"`{found[0]}` and `{found[1]}` could be the prompt (name one with data.columns.prompt)")
    if found == ["instruction"] and "input" in row:
        return ["instruction", "input"]
    return found


def _joined(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of one column, or several columns of text with blank lines between them."""
    if len(names) == 1:
        return row[names[0]]
    parts = [row[name] for name in names if not is_empty(row[name])]
    if any(not isinstance(part, str) for part in parts):
        raise RowError(f"`{names[0]}` and `{names[1]}` cannot be joined, as one of them is not text")
    if is_empty(row[names[0]]):
        return None
    return "\n\n".join(parts)


def _place_conversation(row: dict[str, Any], sources: dict[str, list[str]]) -> None:
    """ShareGPT's ``conversations``: the prompt of responses beside it, or a conversation to imitate."""
    compared = "chosen" in row or "rejected" in row
    role = "prompt" if compared else "messages"
    if role not in row and "completion" not in row:
        row[role] = row["conversations"]
        sources[role] = ["conversations"]


def _settle_shapes(row: dict[str, Any], sources: dict[str, list[str]]) -> tuple[str, ...]:
    """Bring prompt and responses into shapes that go together, where that is plain; what was done that may matter."""
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
    """Texts that answer messages become the assistant's turns, as a text that messages answer becomes the user's."""
    if any(not isinstance(row[name], str) or looks_encoded(row[name]) for name in sides):
        return
    asked = row.get("prompt" if "prompt" in row else "messages")
    last = asked[-1] if isinstance(asked, list) and asked else None
    if not isinstance(last, dict) or last.get("role") not in ("user", "tool"):
        return
    if "prompt" not in row:
        row["prompt"], sources["prompt"] = asked, ["messages"]
    row.update({name: [{"role": "assistant", "content": str(row[name])}] for name in sides})


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Without columns that are not given; a null prompt or response stays, for the format to name."""
    responses = [name for name in ("chosen", "rejected") if row.get(name) is not None]
    stay = {"prompt", "chosen", "rejected"} if responses else {"prompt"}
    return {name: value for name, value in row.items() if value is not None or name in stay}
