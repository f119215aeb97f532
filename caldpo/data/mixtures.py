"""Mix several data sets under one key, each with its share of the split. No heavy imports here."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caldpo.data.pair import PreferencePair
from caldpo.errors import CaldpoError
from caldpo.utils.text_format import counted

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
        CaldpoError: no data set, one named twice, weights for some alone, or a weight that is no positive number.
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


def label(named: Named) -> str:
    """Name the data sets on one line, for a message."""
    return named if isinstance(named, str) else " + ".join(part.name for part in parts_of(named, "data"))


def share_out(
    pairs: Sequence[PreferencePair], part_of: Mapping[str, int], parts: Sequence[Part], seed: int, key: str
) -> tuple[list[PreferencePair], str]:
    """Draw as many pairs as possible with each data set in its share, none taken twice.

    The data set that is smallest for its share is taken whole; from every other one its share is drawn without
    replacement, by the seed and the number of its pairs alone. Counts are rounded to whole pairs.

    Args:
        pairs: of all data sets.
        part_of: from a pair's origin to the index of its data set in ``parts``.
        parts: data sets, each with its share.
        seed: of the draw.
        key: the setting with the weights, for the error of a data set that would give no pair.

    Returns:
        The drawn pairs, in order, and a line with the counts.
    """
    places: list[list[int]] = [[] for _ in parts]
    for place, pair in enumerate(pairs):
        places[part_of[pair.origin]].append(place)
    shares = [part.share or 0.0 for part in parts]
    total = min(len(own) / share for own, share in zip(places, shares, strict=True))
    counts = [min(round(total * share), len(own)) for own, share in zip(places, shares, strict=True)]
    listed = "; ".join(
        f"{part.name} {share:.1%}: {count:,} of {counted(len(own), 'pair')}"
        for part, share, count, own in zip(parts, shares, counts, places, strict=True)
    )
    if not all(counts):
        none = parts[counts.index(0)].name
        raise CaldpoError(
            f"the weights leave no pair of {none} ({listed})",
            key=key,
            remedy="change the weights, or leave out the data set that has too few pairs",
        )
    drawn = (random.Random(seed).sample(own, count) for own, count in zip(places, counts, strict=True))
    return [pairs[place] for place in sorted(place for some in drawn for place in some)], listed
