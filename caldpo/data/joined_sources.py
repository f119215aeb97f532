"""The pairs of all data sets that ``data.train`` or ``data.test`` names, read one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caldpo.data.load import LoadReport, load_pairs
from caldpo.data.mixtures import AUTO, Named, Part, label, parts_of, share_out
from caldpo.data.pair import PreferencePair
from caldpo.data.pair_checks import DegeneracyCheck
from caldpo.data.raw_row import PairSource
from caldpo.errors import CaldpoError

_PATH = "data.source.path"  # of which data.path is the short form


@dataclass(frozen=True)
class Joined:
    """What one key names, read.

    Args:
        key: ``data.train`` or ``data.test``.
        label: what is named, on one line.
        parts: the data sets.
        pairs: of all of them, in their order.
        reports: the account of each.
    """

    key: str
    label: str
    parts: Sequence[Part]
    pairs: list[PreferencePair] = field(default_factory=list, repr=False)
    reports: list[LoadReport] = field(default_factory=list, repr=False)
    _part_of: dict[str, int] = field(default_factory=dict, repr=False)

    def with_pairs(self, pairs: list[PreferencePair]) -> Joined:
        """The same of which these pairs are left."""
        return replace(self, pairs=pairs)

    def cut(self, pairs: list[PreferencePair]) -> Joined:
        """Pairs that were held out of these: their account is already given, and weights are of training pairs."""
        return Joined(self.key, self.label, [Part(self.label)], pairs)

    def shared_out(self, pairs: list[PreferencePair], seed: int) -> tuple[list[PreferencePair], list[str]]:
        """The pairs of a split under the weights, and a line about them; all of them, and none, without weights.

        Args:
            pairs: those that are left of :attr:`pairs`.
            seed: of the draw.

        Raises:
            CaldpoError: as :func:`~caldpo.data.mixtures.share_out` does.
        """
        if self.parts[0].share is None:
            return pairs, []
        drawn, told = share_out(pairs, self._part_of, self.parts, seed, self.key)
        return drawn, [f"{self.key} by weight: {told}"]


def read_joined(source: PairSource, named: Named, key: str, **policies: Any) -> Joined:
    """Read the data sets that ``named`` asks the source for; of a pair that two of them have, the first stands.

    Args:
        source: where the rows come from.
        named: what to ask it for.
        key: the setting that names it.
        policies: as for :func:`~caldpo.data.load.load_pairs`.

    Raises:
        CaldpoError: as ``load_pairs``; a source knows its name alone, so an error about it gets its key here.
    """
    joined, seen = Joined(key, label(named), parts_of(named, key)), DegeneracyCheck()
    files: dict[Path, str] = {}
    for place, part in enumerate(joined.parts):
        for file in _asked(key, part.name, source.files) if hasattr(source, "files") else ():
            if (other := files.setdefault(file.resolve(), part.name)) != part.name:
                remedy = "name each file in one data set alone"
                raise CaldpoError(f"{file} is read for {other} already", key=key, value=part.name, remedy=remedy)
        pairs, report = _asked(key, part.name, lambda name: load_pairs(source, name, degenerate=seen, **policies))
        joined.pairs.extend(pairs)
        joined.reports.append(report)
        if part.share is not None:
            joined._part_of.update((pair.origin, place) for pair in pairs)
    return joined


def held_out_name(source: PairSource, train: Named, test: Named | None) -> tuple[Named | None, list[str]]:
    """What the held-out pairs are read from, None to cut them from the training pairs; and lines about the choice.

    Args:
        source: which may know of test splits.
        train: what is trained on.
        test: as it was asked for; ``auto`` takes the test split beside ``train``, where that is one name.

    Raises:
        CaldpoError: the source cannot tell.
    """
    if test is not None and test != AUTO:
        if not hasattr(source, "as_test"):
            return test, []
        parts = parts_of(test, "data.test")
        names = [_asked("data.test", part.name, source.as_test) for part in parts]
        changed = [f"data.test: {n} of {p.name}" for n, p in zip(names, parts, strict=True) if n != p.name]
        return [{"path": n, "weight": p.share} for n, p in zip(names, parts, strict=True)], changed
    if not hasattr(source, "held_out"):
        return None, []
    found = [_asked("data.train", part.name, source.held_out) for part in parts_of(train, "data.train")]
    if test == AUTO and len(found) == 1 and found[0] is not None:
        return found[0], [f"data.test={found[0]}, the test split beside it (data.test=null cuts one from data.train)"]
    unused = [name for name in found if name is not None]
    return None, [f"not used: the test split {name} (data.test={name} takes it)" for name in unused]


def _asked(key: str, name: str, ask: Callable[[str], Any]) -> Any:
    """The answer about one data set; an error about its name gets its key, one about where it lies the short one."""
    try:
        return ask(name)
    except CaldpoError as error:
        known = {name: key, _PATH: "data.path"}.get(error.key or "")
        if known is None:
            raise
        value = name if error.key == name else error.value
        remedy = error.remedy and error.remedy.replace(_PATH, "data.path")
        raise CaldpoError(error.message, key=known, value=value, remedy=remedy) from error
