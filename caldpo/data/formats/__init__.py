"""Row formats of preference data, told apart row by row.

To add one, say ``ranked``:

1. ``caldpo/data/formats/ranked.py`` with ``COLUMNS`` (those without which no row is of this format),
   ``matches(row) -> bool`` (by the columns alone; no other format may match the same row) and
   ``parse(row) -> PreferencePair`` (raising :class:`~caldpo.data.raw_row.RowError`).
   The file is found by being there; nothing else names it. Read columns with the helpers of
   :mod:`~caldpo.data.formats._fields` (``number`` takes what csv can only write as text); those that ``parse`` does
   not read are named at the start of a run. :mod:`caldpo.data.columns` gives usual columns the names of their roles,
   and :mod:`caldpo.data.prompt_context` adds a system turn, tools and template variables.
2. ``conf/data/ranked.yaml`` that says where its data lies. Files of one's own need none: ``data=local``
   detects the format.
3. A row and the pair it must give in ``tests/data/test_formats.py``; a test there asserts none is missing.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, cast

from caldpo.data.columns import in_force
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import RowError, shown
from caldpo.errors import CaldpoError

_SHOWN = 12  # columns named in a message

Row = dict[str, Any]


class Format(Protocol):
    """What each module of this package provides."""

    COLUMNS: tuple[str, ...]  # a table without one of these has no row of this format

    def matches(self, row: Row) -> bool:
        """Whether the row's columns are this format's; the values may still be wrong."""
        ...

    def parse(self, row: Row) -> PreferencePair:
        """The pair in ``row`` (``origin`` left empty).

        Raises:
            RowError: a column is missing or holds something else than the format says.
        """
        ...


@functools.cache
def formats() -> Mapping[str, Format]:
    """Every format by its name, which is its file's name; files with a leading underscore are helpers."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return MappingProxyType({name: cast(Format, importlib.import_module(f"{__name__}.{name}")) for name in names})


def detect(row: Row) -> str:
    """The name of the one format that ``row`` has.

    Raises:
        RowError: none matches, or several do.
    """
    names = [name for name, module in formats().items() if module.matches(row)]
    if len(names) == 1:
        return names[0]
    if names:
        raise RowError(f"matches several formats ({', '.join(names)})")
    told = f"columns: {_listed(sorted(row))}; formats: {', '.join(formats())}"
    raise RowError(f"no known format ({told}; data.columns.prompt=NAME and its like say which is which)")


def require_columns(columns: Sequence[str], key: str) -> None:
    """Check that the rows of a table can be of some format: one answer for the table, in place of one for each row.

    Args:
        columns: the names in its header or schema; roles that the mapping in force finds in them count, too.
        key: the file or setting that the table comes from, for the message.

    Raises:
        CaldpoError: no format has these columns; what each would need, and which of that is missing.
    """
    try:
        roles = set(in_force().roles(columns))
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
    remedy = "say which is which with data.columns.prompt=..., data.columns.chosen=..., or name another file"
    raise CaldpoError("\n".join(lines), key=key, remedy=remedy)


def _near(column: str, columns: Sequence[str]) -> str:
    by_lower = {name.strip().lower(): name for name in columns}
    near = difflib.get_close_matches(column, by_lower, n=1, cutoff=0.7)
    return f" (there is {shown(by_lower[near[0]])})" if near else ""


def _listed(columns: Sequence[str]) -> str:
    more = f", and {len(columns) - _SHOWN:,} more" if len(columns) > _SHOWN else ""
    names = (name if name.isprintable() and len(name) <= 40 else shown(name) for name in columns[:_SHOWN])
    return (", ".join(names) or "none") + more
