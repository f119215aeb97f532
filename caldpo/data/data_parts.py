"""List the data sets that ``data.train`` or ``data.test`` names. No heavy imports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caldpo.errors import CaldpoError

# A name; or [NAME, ...] one after another; or {NAME: WEIGHT, ...}, for names that Hydra's grammar cannot have as a key
# [{path: NAME, weight: WEIGHT}, ...].
Named = str | list[Any] | dict[str, Any]

AUTO = "auto"  # as data.test: the test split beside the training split, where there is one

_WRITTEN = "write NAME, '[NAME,NAME]', '{NAME: WEIGHT, NAME: WEIGHT}' or '[{path: NAME, weight: WEIGHT}, ...]'"


@dataclass(frozen=True, slots=True)
class Part:
    """One data set of several."""

    name: str  # of a file or split of the source
    share: float | None = None  # of the pairs of the split, all adding up to 1; None takes every pair there is


def parts_of(named: Named, key: str) -> list[Part]:
    """List the data sets that the value of ``data.train`` or ``data.test`` names, in order.

    Raises:
        CaldpoError: no data set, one named twice, weights for only some, or a weight that is no positive number.
    """
    items: list[Any] = [named] if isinstance(named, str) else list(named)
    if isinstance(named, Mapping):
        items = [{"path": name, "weight": weight} for name, weight in named.items()]
    entries = [_name_and_weight(item, key) for item in items]
    if not entries:
        raise CaldpoError("names no data", key=key, remedy=_WRITTEN)
    names = [name for name, _ in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CaldpoError(
            "is named twice: its rows would be taken twice", key=key, value=twice, remedy="name each data set once"
        )
    weights = [weight for _, weight in entries if weight is not None]
    if not weights:
        return [Part(name) for name in names]
    if len(weights) < len(entries):
        bare = next(name for name, weight in entries if weight is None)
        raise CaldpoError(f"{bare} has no weight, and others have one", key=key, remedy="give each a weight, or none")
    return [Part(name, weight / sum(weights)) for name, weight in zip(names, weights, strict=True)]


def _name_and_weight(item: Any, key: str) -> tuple[str, float | None]:
    if isinstance(item, str):
        return item, None
    if not isinstance(item, Mapping) or not isinstance(item.get("path"), str) or item.keys() - {"path", "weight"}:
        raise CaldpoError(f"has to name data, not {item!r}", key=key, remedy=_WRITTEN)
    weight = item.get("weight")
    if weight is None:
        return item["path"], None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise CaldpoError(
            f"the weight of {item['path']} must be a number > 0, not {weight!r}",
            key=key,
            remedy="a weight is the data set's share of the pairs, in proportion to the others' weights",
        )
    return item["path"], float(weight)
