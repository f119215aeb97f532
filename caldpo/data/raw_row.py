"""Rows as sources yield them: values, table cells, conversations in other notations, and what is wrong with a row."""

from __future__ import annotations

import ast
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from caldpo.models.model_source import ModelSource

TURNS = ("prompt", "chosen", "rejected", "completion", "messages", "conversations")  # may hold conversations
BLOCK_ROWS = 256  # read together: enough to be worth handing on, few enough for a smooth progress bar
MAX_ENCODED = 2_000_000  # characters; Python's own parser takes a hundred times the memory of what it reads

_MAX_SHOWN = 60  # characters of a value in a message
_SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
_BEGINS = re.compile(  # a list of objects, or one object
    r"\s*(?:(?P<list>(?:array\()?\[\s*\{\s*['\"]\w+['\"]\s*:)|\{\s*['\"](?:role|from|content|value)['\"]\s*:)"
)
_ROLE = re.compile(r"['\"](?:role|from)['\"]\s*:\s*['\"]")
_SPEAKER = re.compile(r"['\"](?:role|from)['\"]\s*:\s*['\"](?:system|user|assistant|tool|human|gpt)['\"]")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a source before its format is known.

    A line that is no JSON object has an ``error`` and no ``value``. A row that was read but cannot be trusted (a key
    given twice) has both. Every other row has only a ``value``.
    """

    origin: str  # train.jsonl:12, train.csv:12-14 or train_prefs[12]; lines count from 1, rows from 0
    value: object | None
    error: str | None = None  # what is wrong with the row, in one phrase
    note: str | None = None  # what is odd about a good row, a fixed phrase to count by
    table: str | None = None  # name of a table: each of its rows has all columns, and null means not given


class RowError(Exception):
    """A row that is no usable preference pair.

    Its ``reason`` is a fixed phrase, with details in parentheses at its end so that equal faults count together:
    ``unknown role ('bot')``. The kind ``filtered`` is a valid row of another task, left out under every setting.
    """

    def __init__(self, reason: str, *, kind: Literal["row", "filtered"] = "row") -> None:
        super().__init__(reason)
        self.reason, self.kind = reason, kind


class PairSource(ABC):
    """Yields raw rows by split: files, a hub data set, a generated environment.

    Only ``name`` and :meth:`rows` are required. A source overrides what else it supports.
    """

    name: str  # short, for messages and cache keys

    @abstractmethod
    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield the rows of ``split``, a name or a path, in a fixed order.

        Raises:
            CaldpoError: the split cannot be read at all (a bad row is yielded with its error instead). Its
                ``key`` is ``split`` where the split is at fault; the caller knows which setting names it.
        """

    def stream(self, split: str) -> Iterator[RawRow]:
        """Yield the rows of :meth:`rows` as they are read, where that would make a copy of all first."""
        return self.rows(split)

    def blocks(self, split: str) -> Iterator[Iterable[RawRow]]:
        """Yield the rows of :meth:`rows` by the hundred, in order; where they are still to be decoded, iterating does.

        Blocks may be sent to other processes.
        """
        rows = self.rows(split)
        while block := list(islice(rows, BLOCK_ROWS)):
            yield block

    def files(self, split: str) -> Sequence[Path]:
        """List the files that ``split`` stands for; none where the source reads no files."""
        return ()

    def file_sizes(self, split: str) -> list[tuple[str, int]]:
        """List names and sizes (bytes) of what ``split`` is read from: a change that shows without reading it."""
        return [(file.name, file.stat().st_size) for file in self.files(split)]

    def notes(self, split: str) -> Sequence[str]:
        """Describe which files were chosen for ``split``, a line each."""
        return ()

    def held_out(self, split: str) -> str | None:
        """Name the test split beside ``split``, for ``data.test=auto``."""
        return None

    def as_test(self, split: str) -> str:
        """Return what ``split`` stands for in ``data.test``, where that differs from ``data.train``."""
        return split

    def is_generated(self, split: str) -> bool:
        """Whether the rows exist already, or need no language model to make them."""
        return True

    def attach_model(self, model: ModelSource) -> None:  # noqa: B027 (only a source that samples needs it)
        """Take the model that training starts from, before rows are read: for a source that samples from it."""

    def commit(self) -> str | None:
        """Return the commit of the hub that would be read now; None where the data has none."""
        return None

    def pinned(self, commit: str) -> PairSource:
        """Return the source that reads ``commit``, whatever its branch has moved on to."""
        return self


class RewardSource(PairSource):
    """A generated source whose true reward is known."""

    @abstractmethod
    def reward(self, prompt: str, response: str) -> float:
        """Return the true reward of a response."""

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Return the true rewards of many responses, one to each prompt."""
        return [self.reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


@runtime_checkable
class ExactSource(Protocol):
    """A source that knows expected reward and KL of a policy without sampling."""

    def exact_metrics(self, policy: PreTrainedModel, reference: PreTrainedModel, beta: float) -> dict[str, float]:
        """Return sums over the whole distribution, by name; ``beta`` is the reward per nat of log-ratio."""
        ...


class Cell(str):
    """A cell of an untyped table (csv), where numbers and lists can only be written as text."""


def shown(value: object) -> str:
    """Format a value of a row for a message: on one line, short, printable."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def shown_name(name: str) -> str:
    """Format a column's name for a message: as it is where it is short and printable."""
    return name if name.isprintable() and len(name) <= 40 else shown(name)


def without_nulls(value: Any) -> Any:
    """Drop the nulls of objects, at any depth: a table cannot leave a column out of one row."""
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def looks_encoded(value: str) -> bool:
    """Whether a text begins like messages in JSON or Python notation, and names a speaker."""
    begins = _BEGINS.match(value)
    return begins is not None and (_ROLE if begins["list"] else _SPEAKER).search(value) is not None


def decoded(column: str, value: Any) -> Any:
    """Decode messages that a text holds in JSON or Python notation; return any other value as it is.

    Only for tables: JSON has lists, and messages encoded as text are refused there.
    """
    if not isinstance(value, str) or not looks_encoded(value):
        return value
    result = parsed(value)
    items = result if isinstance(result, list) else [result]
    if items and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in items):
        return items
    raise RowError(f"`{column}` is a conversation encoded as text, which cannot be decoded")


def parsed(value: str) -> Any:
    """Parse a text as JSON or else as a Python literal; None where it is neither, or too long."""
    if len(value) > MAX_ENCODED:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def as_turns(column: str, value: Any) -> Any:
    """Convert ShareGPT's ``from`` and ``value``, or a single object, to messages with ``role`` and ``content``."""
    if isinstance(value, dict):
        turn = _turn(value)
        if "role" not in turn and isinstance(turn.get("content"), str):
            turn = {"role": "user" if column == "prompt" else "assistant", **turn}
        return [turn] if "role" in turn else value
    if isinstance(value, list):
        return [_turn(item) if isinstance(item, dict) else item for item in value]
    return value


def _turn(item: Mapping[str, Any]) -> dict[str, Any]:
    if "role" in item or "from" not in item or "value" not in item:
        return dict(item)
    speaker = item["from"]
    role = _SHAREGPT.get(speaker, speaker) if isinstance(speaker, str) else speaker
    rest = {name: other for name, other in item.items() if name not in ("from", "value")}
    return {"role": role, "content": item["value"], **rest}
