"""Read all data sets that ``data.train`` or ``data.test`` names, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caldpo.data.data_report import LoadReport
from caldpo.data.load import load_pairs
from caldpo.data.mixtures import AUTO, Named, Part, label, parts_of, share_out
from caldpo.data.pair import PreferencePair
from caldpo.data.pair_checks import DegeneracyCheck
from caldpo.data.raw_row import PairSource
from caldpo.errors import CaldpoError

_PATH = "data.source.path"  # of which data.path is the short form


@dataclass(frozen=True)
class JoinedPairs:
    """The pairs of all data sets under one key, in order, with a report for each data set."""

    key: str  # data.train or data.test
    label: str  # the names, on one line
    parts: Sequence[Part]
    pairs: list[PreferencePair] = field(default_factory=list, repr=False)
    reports: list[LoadReport] = field(default_factory=list, repr=False)
    _part_of: dict[str, int] = field(default_factory=dict, repr=False)

    def with_pairs(self, pairs: list[PreferencePair]) -> JoinedPairs:
        """Replace the pairs by a part of them."""
        return replace(self, pairs=pairs)

    def held_out(self, pairs: list[PreferencePair]) -> JoinedPairs:
        """Take pairs held out of these: already reported, and without weights, which are of training pairs."""
        return JoinedPairs(self.key, self.label, [Part(self.label)], pairs)

    def shared_out(self, pairs: list[PreferencePair], seed: int) -> tuple[list[PreferencePair], list[str]]:
        """Draw of the remaining pairs by the weights, and describe the shares on a line; without weights take all."""
        if self.parts[0].share is None:
            return pairs, []
        drawn, shares = share_out(pairs, self._part_of, self.parts, seed, self.key)
        return drawn, [f"{self.key} by weight: {shares}"]


def read_joined(source: PairSource, named: Named, key: str, **policies: Any) -> JoinedPairs:
    """Read the data sets that a setting names; of a pair that occurs in two of them, the first one stands.

    Raises:
        CaldpoError: as :func:`~caldpo.data.load.load_pairs`, which takes the policies, with the setting as key; a file
            that two data sets share.
    """
    joined, seen = JoinedPairs(key, label(named), parts_of(named, key)), DegeneracyCheck()
    files: dict[Path, str] = {}
    for place, part in enumerate(joined.parts):
        for file in _ask(key, part.name, source.files):
            if (other := files.setdefault(file.resolve(), part.name)) != part.name:
                remedy = "name each file in one data set alone"
                raise CaldpoError(f"{file} is read for {other} already", key=key, value=part.name, remedy=remedy)
        pairs, report = _ask(key, part.name, lambda name: load_pairs(source, name, degenerate=seen, **policies))
        joined.pairs.extend(pairs)
        joined.reports.append(report)
        if part.share is not None:
            joined._part_of.update((pair.origin, place) for pair in pairs)
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
