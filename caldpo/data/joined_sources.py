"""Read the data sets that ``data.train`` or ``data.test`` names, one after another or each with its share."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caldpo.data.data_report import LoadReport
from caldpo.data.load import load_pairs
from caldpo.data.pair import PreferencePair
from caldpo.data.pair_checks import DegeneracyCheck
from caldpo.data.raw_row import PairSource
from caldpo.errors import CaldpoError
from caldpo.utils.text_format import counted

# A name; or [NAME, ...] one after another; or {NAME: WEIGHT, ...}, for names that Hydra's grammar cannot have as a key
# [{path: NAME, weight: WEIGHT}, ...].
Named = str | list[Any] | dict[str, Any]

AUTO = "auto"  # as data.test: the test split beside the training split, where there is one

_WRITTEN = "write NAME, '[NAME,NAME]', '{NAME: WEIGHT, NAME: WEIGHT}' or '[{path: NAME, weight: WEIGHT}, ...]'"
_PATH = "data.source.path"  # of which data.path is the short form


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


@dataclass
class JoinedPairs:
    """The pairs of all data sets under one key, in order, with a report for each data set."""

    key: str  # data.train or data.test
    parts: list[Part]
    pairs: list[PreferencePair] = field(default_factory=list)
    reports: list[LoadReport] = field(default_factory=list)
    part_of: dict[str, int] = field(default_factory=dict)  # from a pair's origin to the index of its data set

    @property
    def label(self) -> str:
        """The names, on one line."""
        return " + ".join(part.name for part in self.parts)

    def held_out(self, pairs: list[PreferencePair]) -> JoinedPairs:
        """Take pairs held out of these: already reported, and without weights, which are of training pairs."""
        return JoinedPairs(self.key, [Part(self.label)], pairs)

    def shared_out(self, pairs: list[PreferencePair], seed: int) -> tuple[list[PreferencePair], list[str]]:
        """Draw as many of the remaining pairs as possible with each data set in its share; without shares take all.

        The data set that is smallest for its share is taken whole; from every other one its share is drawn without
        replacement, by the seed and the number of its pairs alone. Counts are rounded to whole pairs.

        Returns:
            The drawn pairs, in order, and a line with the counts.
        """
        if self.parts[0].share is None:
            return pairs, []
        places: list[list[int]] = [[] for _ in self.parts]
        for place, pair in enumerate(pairs):
            places[self.part_of[pair.origin]].append(place)
        shares = [part.share or 0.0 for part in self.parts]
        total = min(len(own) / share for own, share in zip(places, shares, strict=True))
        counts = [min(round(total * share), len(own)) for own, share in zip(places, shares, strict=True)]
        listed = "; ".join(
            f"{part.name} {share:.1%}: {count:,} of {counted(len(own), 'pair')}"
            for part, share, count, own in zip(self.parts, shares, counts, places, strict=True)
        )
        if not all(counts):
            none = self.parts[counts.index(0)].name
            raise CaldpoError(
                f"the weights leave no pair of {none} ({listed})",
                key=self.key,
                remedy="change the weights, or leave out the data set that has too few pairs",
            )
        drawn = (random.Random(seed).sample(own, count) for own, count in zip(places, counts, strict=True))
        rows = sorted(place for some in drawn for place in some)
        return [pairs[place] for place in rows], [f"{self.key} by weight: {listed}"]


def read_joined(source: PairSource, named: Named, key: str, **policies: Any) -> JoinedPairs:
    """Read the data sets that a setting names; of a pair that occurs in two of them, the first one stands.

    Raises:
        CaldpoError: as :func:`~caldpo.data.load.load_pairs`, which takes the policies, with the setting as key; a file
            that two data sets share.
    """
    joined, seen = JoinedPairs(key, parts_of(named, key)), DegeneracyCheck()
    files: dict[Path, str] = {}
    for place, part in enumerate(joined.parts):
        for file in _ask(key, part.name, source.files):
            if (other := files.setdefault(file.resolve(), part.name)) != part.name:
                remedy = "name each file in only one data set"
                raise CaldpoError(f"{file} is read for {other} already", key=key, value=part.name, remedy=remedy)
        pairs, report = _ask(key, part.name, lambda name: load_pairs(source, name, degenerate=seen, **policies))
        joined.pairs.extend(pairs)
        joined.reports.append(report)
        if part.share is not None:
            joined.part_of.update((pair.origin, place) for pair in pairs)
    return joined


def held_out_name(source: PairSource, train: Named, test: Named | None) -> tuple[Named | None, list[str]]:
    """Name the held-out data, None to cut it from the training pairs; and describe the choice in lines.

    The value ``auto`` of ``test`` takes the test split beside ``train``, where that is one name.
    """
    if test is not None and test != AUTO:
        parts = parts_of(test, "data.test")
        names = [_ask("data.test", part.name, source.as_test) for part in parts]
        changed = [f"data.test: {n} of {p.name}" for n, p in zip(names, parts, strict=True) if n != p.name]
        return [{"path": n, "weight": p.share} for n, p in zip(names, parts, strict=True)], changed
    beside = [_ask("data.train", part.name, source.held_out) for part in parts_of(train, "data.train")]
    if test == AUTO and len(beside) == 1 and beside[0] is not None:
        return beside[0], [f"data.test={beside[0]}, the test split beside it (data.test=null cuts one from data.train)"]
    unused = [name for name in beside if name is not None]
    return None, [f"not used: the test split {name} (data.test={name} takes it)" for name in unused]


def _ask(key: str, name: str, ask: Callable[[str], Any]) -> Any:
    """Ask a source about one data set; an error about its name gets ``key``, one about its path the short key."""
    try:
        return ask(name)
    except CaldpoError as error:
        known = {name: key, _PATH: "data.path"}.get(error.key or "")
        if known is None:
            raise
        value = name if error.key == name else error.value
        remedy = error.remedy and error.remedy.replace(_PATH, "data.path")
        raise CaldpoError(error.message, key=known, value=value, remedy=remedy) from error
