"""Detect and parse the row formats of preference data, row by row.

Each module of this package is a format, discovered by its file; docs/recipes.md shows how to add one. Before it,
:mod:`caldpo.data.columns` maps usual column names to roles; after it, :mod:`caldpo.data.row_parsing` adds a system
turn, tools and template variables.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, cast

from caldpo.data.columns import Columns
from caldpo.data.pair import PreferencePair
from caldpo.data.ranked import RankedResponses
from caldpo.data.raw_row import TURNS, RowError, shown, shown_name
from caldpo.errors import CaldpoError

USUAL = ("trl_standard",)  # named first where several formats are equally near
_SHOWN = 12  # columns named in a message

Row = dict[str, Any]


class Format(Protocol):
    """The interface of each module of this package."""

    COLUMNS: tuple[str, ...]  # columns that every row of this format has

    def matches(self, row: Row) -> bool:
        """Whether the row's columns are this format's, and no other's; the values may still be wrong."""
        ...

    def parse(self, row: Row) -> PreferencePair | RankedResponses:
        """Return the pair of ``row``, or the responses that pairs are made of.

        Raises:
            RowError: a column does not hold what the format says.
        """
        ...


@functools.cache
def formats() -> Mapping[str, Format]:
    """Return every format by its file's name; files with a leading underscore are helpers."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return MappingProxyType({name: cast(Format, importlib.import_module(f"{__name__}.{name}")) for name in names})


def detect(row: Row) -> str:
    """Return the name of the one format that ``row`` has; no other number of them is accepted."""
    names = [name for name, module in formats().items() if module.matches(row)]
    if len(names) == 1:
        return names[0]
    if names:
        raise RowError(f"matches several formats ({', '.join(names)})")
    if outer := [name for name, value in row.items() if len(row) == 1 and name not in TURNS and _are_rows(value)]:
        raise RowError(f"one object around the rows (write the list of its key {shown(outer[0])} alone)")
    nearest, missing = _nearest(row)
    lacks = f", which needs {', '.join(f'`{column}`' for column in missing)}" if missing else ""
    raise RowError(
        f"no known format (nearest is {nearest}{lacks}; columns: {_listed(sorted(row))}; data.columns.prompt=NAME and"
        " the like map columns)"
    )


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _nearest(row: Row) -> tuple[str, list[str]]:
    """Return the format of whose columns a row lacks the smallest share, and the missing columns."""
    missing = {name: [c for c in module.COLUMNS if c not in row] for name, module in formats().items()}
    name = min(missing, key=lambda name: (len(missing[name]) / len(formats()[name].COLUMNS), name not in USUAL))
    return name, missing[name]


def require_columns(columns: Sequence[str], key: str, mapping: Columns) -> None:
    """Check that some format fits the columns of a table: one error for the table instead of one for each row.

    Raises:
        CaldpoError: no format has these columns or their roles in ``mapping``; the message lists what each needs and
            lacks. Its key is the file or split of the table.
    """
    try:
        roles = set(mapping.roles(columns))
    except RowError as error:
        raise CaldpoError(error.reason, key=key, remedy=f"its columns are {_listed(columns)}") from error
    by_need: dict[tuple[str, ...], list[str]] = {}
    for name, module in formats().items():
        if set(module.COLUMNS) <= roles:
            return
        by_need.setdefault(module.COLUMNS, []).append(name)
    lines = [f"no pair can be made of its columns ({_listed(columns)})"]
    for need, names in by_need.items():
        missing = [f"`{column}`{_near(column, columns)}" for column in need if column not in roles]
        lines.append(f"    {', '.join(names)}: {', '.join(need)}; missing {', '.join(missing)}")
    remedy = "map them with data.columns.prompt=..., data.columns.chosen=..., or name another file"
    raise CaldpoError("\n".join(lines), key=key, remedy=remedy)


def _near(column: str, columns: Sequence[str]) -> str:
    by_lower = {name.strip().lower(): name for name in columns}
    near = difflib.get_close_matches(column, by_lower, n=1, cutoff=0.7)
    return f" (there is {shown(by_lower[near[0]])})" if near else ""


def _listed(columns: Sequence[str]) -> str:
    more = f", and {len(columns) - _SHOWN:,} more" if len(columns) > _SHOWN else ""
    return (", ".join(map(shown_name, columns[:_SHOWN])) or "none") + more
