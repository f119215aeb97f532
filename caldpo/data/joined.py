"""The pairs of all data sets that ``data.train`` or ``data.test`` names, read one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from caldpo.data.load import LoadReport, load_pairs
from caldpo.data.mix import AUTO, Named, Part, label, parts_of, share_out
from caldpo.data.pair import PreferencePair
from caldpo.data.rows import PairSource
from caldpo.data.validate import DegeneracyCheck
from caldpo.errors import CaldpoError

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
            CaldpoError: as :func:`~caldpo.data.mix.share_out` does.
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
    for place, part in enumerate(joined.parts):
        try:
            pairs, report = load_pairs(source, part.name, degenerate=seen, **policies)
        except CaldpoError as error:
            if error.key != part.name:
                raise
            raise CaldpoError(error.message, key=key, value=part.name, remedy=error.remedy) from error
        joined.pairs.extend(pairs)
        joined.reports.append(report)
        if part.share is not None:
            joined._part_of.update((pair.origin, place) for pair in pairs)
    return joined


def held_out_name(source: PairSource, train: Named, test: Named | None) -> tuple[Named | None, list[str]]:
    """What the held-out pairs are read from, None to cut them from the training pairs; and a line about the choice.

    Args:
        source: which may know of a test split beside a training split.
        train: what is trained on.
        test: as it was asked for; ``auto`` takes the test split beside ``train``, where that is one name.

    Raises:
        CaldpoError: the source cannot tell. Its key is ``data.train``.
    """
    know = getattr(source, "held_out", None)
    if know is None or not (test is None or test == AUTO):
        return (None if test == AUTO else test), []
    found = []
    for part in parts_of(train, "data.train"):
        try:
            found.append(know(part.name))
        except CaldpoError as error:
            if error.key != part.name:
                raise
            raise CaldpoError(error.message, key="data.train", value=part.name, remedy=error.remedy) from error
    if test == AUTO and len(found) == 1 and found[0] is not None:
        return found[0], [f"data.test={found[0]}, the test split beside it (data.test=null cuts one from data.train)"]
    unused = [name for name in found if name is not None]
    return None, [f"not used: the test split {name} (data.test={name} takes it)" for name in unused]
