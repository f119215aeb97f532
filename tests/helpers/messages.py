"""Check what a message tells a person - key, value, remedy, other facts - and leave its wording free."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from caldpo.errors import CaldpoError


def names(error: Any, *facts: Any, key: Any = None, value: Any = None, remedy: Any = None) -> None:
    """Assert that an error, or a printed text, names a key, a value, a remedy and other facts.

    Args:
        error: an exception, what ``pytest.raises`` caught, or printed text.
        facts: numbers, names, paths or settings that the whole text must hold.
        key: the configuration key or place: equal to ``CaldpoError.key``; held by any other error or text.
        value: the offending value: held by the text ahead of the remedy.
        remedy: a command, override or name, or several in a tuple or list: held by the remedy.

    Every fact must stand by itself: ``1`` is not held by ``10`` or ``0.1``, ``beta`` is not held by ``betas``.
    """
    if isinstance(error, pytest.ExceptionInfo):
        error = error.value
    text = str(error)
    problem = solution = text
    if isinstance(error, CaldpoError):
        solution = error.remedy or ""
        problem = text.partition(f"\n  What to do: {solution}")[0] if solution else text
        assert key is None or error.key == str(key), f"the key is {error.key!r}, not {str(key)!r}: {text}"
        key = None
    remedies = remedy if isinstance(remedy, (tuple, list)) else () if remedy is None else (remedy,)
    expected = [("fact", fact, text) for fact in facts] + [("remedy", fact, solution) for fact in remedies]
    expected += [("key", key, text)] if key is not None else []
    expected += [("value", value, problem)] if value is not None else []
    for role, fact, held_by in expected:
        assert holds(held_by, fact), f"the {role} {str(fact)!r} is not named in {held_by!r}; the whole text: {text}"


@contextmanager
def refused(
    *facts: Any, key: Any = None, value: Any = None, remedy: Any = None, kind: type[Exception] = CaldpoError
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Assert that the block raises an error that ``names`` all of this."""
    with pytest.raises(kind) as caught:
        yield caught
    names(caught, *facts, key=key, value=value, remedy=remedy)


def holds(text: str, fact: Any) -> bool:
    """Whether the text holds the fact by itself, not as a part of a longer word or number; line breaks are spaces."""
    wanted, text = " ".join(str(fact).split()), " ".join(text.split())
    before = r"(?<!\w)(?<!\d[.,])" if re.match(r"\w", wanted) else ""
    after = r"(?!\w)(?![.,]\d)" if re.search(r"\w$", wanted) else ""
    return re.search(before + re.escape(wanted) + after, text) is not None
