"""Read the data sets that ``data.train`` or ``data.test`` names, one after another or each with its share."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caldpo.data.data_parts import AUTO, Named, Part, parts_of
from caldpo.data.data_report import LoadReport
from caldpo.data.load import load_pairs
from caldpo.data.pair_checks import DegeneracyCheck
from caldpo.data.raw_row import PairSource
from caldpo.data.stored_pairs import PairWriter, StoredPairs
from caldpo.errors import CaldpoError
from caldpo.utils.text_format import counted

_PATH = "data.source.path"  # of which data.path is the short form


@dataclass
class JoinedPairs:
    """The pairs of all data sets under one key, in order, with a report for each data set."""

    key: str  # data.train or data.test
    parts: list[Part]
    pairs: StoredPairs = field(default_factory=StoredPairs)
    reports: list[LoadReport] = field(default_factory=list)
    part_of: dict[str, int] = field(default_factory=dict)  # from a pair's origin to the index of its data set

    @property
    def label(self) -> str:
        """The names, on one line."""
        return " + ".join(part.name for part in self.parts)

    def held_out(self, pairs: StoredPairs) -> JoinedPairs:
        """Take pairs held out of these: already reported, and without weights, which are of training pairs."""
        return JoinedPairs(self.key, [Part(self.label)], pairs)

    def shared_out(self, pairs: StoredPairs, seed: int) -> tuple[StoredPairs, list[str]]:
        """Draw as many of the remaining pairs as possible with each data set in its share; without shares take all.

        The data set that is smallest for its share is taken whole; from every other one its share is drawn without
        replacement, by the seed and the number of its pairs alone. Counts are rounded to whole pairs.

        Returns:
            The drawn pairs, in order, and a line with the counts.
        """
        if self.parts[0].share is None:
            return pairs, []
        places: list[list[int]] = [[] for _ in self.parts]
        for place, origin in enumerate(pairs.origins()):
            places[self.part_of[origin]].append(place)
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
        return pairs.take(rows), [f"{self.key} by weight: {listed}"]


def read_joined(
    source: PairSource, named: Named, key: str, *, find_repeats: bool = True, **policies: Any
) -> JoinedPairs:
    """Read the data sets that a setting names; of a pair that occurs in two of them, the first one stands.

    Args:
        source: of the rows.
        named, key: the setting.
        find_repeats: whether pairs that repeat or contradict an earlier one count as degenerate.
        policies: as for :func:`~caldpo.data.load.load_pairs`.

    Raises:
        CaldpoError: as :func:`~caldpo.data.load.load_pairs`, with the setting as key; a file that two data sets share.
    """
    joined, writer = JoinedPairs(key, parts_of(named, key)), PairWriter()
    seen = DegeneracyCheck(find_repeats=find_repeats)
    require_files_once(source, [part.name for part in joined.parts], key)
    for place, part in enumerate(joined.parts):
        with about(part.name, key):
            pairs, report = load_pairs(source, part.name, degenerate=seen, writer=writer, **policies)
        joined.reports.append(report)
        if part.share is not None:
            joined.part_of.update((origin, place) for origin in pairs.origins())
    joined.pairs = writer.pairs()
    return joined


def require_files_once(source: PairSource, names: Sequence[str], key: str) -> None:
    """Check that no file is read for two of the data sets that a setting names."""
    files: dict[Path, str] = {}
    for name in names:
        for file in _ask(key, name, source.files):
            if (other := files.setdefault(file.resolve(), name)) != name:
                remedy = "name each file in only one data set"
                raise CaldpoError(f"{file} is read for {other} already", key=key, value=name, remedy=remedy)


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
    with about(name, key):
        return ask(name)


@contextlib.contextmanager
def about(name: str, key: str) -> Iterator[None]:
    """Rename the key of an error from a source: to ``key`` where it is about ``name``, to the short one of its path."""
    try:
        yield
    except CaldpoError as error:
        known = {name: key, _PATH: "data.path"}.get(error.key or "")
        if known is None:
            raise
        value = name if error.key == name else error.value
        remedy = error.remedy and error.remedy.replace(_PATH, "data.path")
        raise CaldpoError(error.message, key=known, value=value, remedy=remedy) from error
