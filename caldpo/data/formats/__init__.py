"""Row formats of preference data, told apart row by row.

To add one, say ``ranked``:

1. ``caldpo/data/formats/ranked.py`` with ``matches(row) -> bool`` (by the columns alone; no other format may
   match the same row) and ``parse(row) -> PreferencePair`` (raising :class:`~caldpo.data.rows.RowError`).
   The file is found by being there; nothing else names it.
2. ``conf/data/ranked.yaml`` that says where its data lies. Files of one's own need none: ``data=local``
   detects the format.
3. A row and the pair it must give in ``tests/data/test_formats.py``; a test there asserts none is missing.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, cast

from caldpo.data.pair import PreferencePair
from caldpo.data.rows import RowError

Row = dict[str, Any]


class Format(Protocol):
    """What each module of this package provides."""

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
    columns = ", ".join(sorted(row)[:12]) or "none"
    raise RowError(f"no known format (columns: {columns}; formats: {', '.join(formats())})")
