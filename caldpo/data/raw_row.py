"""What a source of preference data yields: rows as they were written, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a source before its format is known.

    A line that is no JSON object has an ``error`` and no ``value``. A row that was read but cannot be
    trusted (a key given twice) has both. Every other row has a ``value`` alone.

    Args:
        origin: where the row stands, ``train.jsonl:12``, ``train.csv:12-14`` or ``train_prefs[12]``; lines count from
            1, rows from 0.
        value: the parsed row; None where there is none.
        error: what is wrong with it, one phrase for a person; None where it was read well.
        note: what is odd about a row that was read well, a fixed phrase to count by.
    """

    origin: str
    value: object | None
    error: str | None = None
    note: str | None = None


@runtime_checkable
class PairSource(Protocol):
    """Anything that yields raw rows by split: files, a hub data set, a generated environment.

    A generated source may also define ``reward(prompt: str, response: str) -> float``, its known true reward, and
    ``rewards(prompts, responses) -> list[float]`` where many at once are cheaper. One whose splits stand for files may
    define ``files(split) -> Sequence[Path]`` and ``notes(split) -> Sequence[str]``, lines about their choice; one that
    knows which split is held out beside another ``held_out(split) -> str | None``, which ``data.test=auto`` asks for,
    and ``as_test(split) -> str`` where a name stands for another split in ``data.test`` than in ``data.train``.
    """

    name: str  # short, for messages and cache keys

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yields the rows of ``split`` in a fixed order.

        Args:
            split: a split's name, or a path where the source reads files.

        Raises:
            CaldpoError: the split cannot be read at all (a bad row is yielded with its error instead). Its
                ``key`` is ``split`` where that is the mistake; whoever asked knows which setting it came from.
        """
        ...


def shown(value: object) -> str:
    """A value of a row as it may stand in a message: on one line, short, and without what no terminal can print."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class RowError(Exception):
    """A row that is no usable preference pair.

    Args:
        reason: a fixed phrase, with details in parentheses at its end so that equal faults count together:
            ``unknown role ('bot')``.
        kind: ``row`` is a fault; ``filtered`` a sound row of another task, left out under every setting.
    """

    def __init__(self, reason: str, *, kind: Literal["row", "filtered"] = "row") -> None:
        super().__init__(reason)
        self.reason, self.kind = reason, kind
