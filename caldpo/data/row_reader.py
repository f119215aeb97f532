"""Read raw rows as pairs, each by itself, so that blocks of them can be read in processes of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from caldpo.data.columns import Columns, require_meaning
from caldpo.data.data_report import Kind, Rejection
from caldpo.data.formats import require_columns
from caldpo.data.pair import PreferencePair
from caldpo.data.pair_checks import Signal, check_pair, has_reversed_scores, pair_signal
from caldpo.data.ranked import RankedCounts, RankedRule
from caldpo.data.raw_row import RawRow, RowError
from caldpo.data.row_parsing import map_row, parse_row, settle_pair
from caldpo.data.stored_pairs import BLOCK, PairFacts, pack

OnReversedScores = Literal["reject", "swap", "keep"]
Item = TypeVar("Item")
Made = TypeVar("Made")

_TOO_DEEP = "nested too deeply"


@dataclass(frozen=True, slots=True)
class ReadPair:
    """What is reported of a row that gave a pair, or of one of its pairs."""

    facts: PairFacts
    signal: str | Signal  # see pair_signal
    format: str
    remarks: tuple[str, ...]
    note: str | None  # of the row
    swapped: bool


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What became of a row."""

    results: list[Rejection | ReadPair]  # one, but for a row of several responses
    ranked: RankedCounts | None = None  # of such a row


@dataclass(frozen=True, slots=True)
class ReadRows:
    """The rows of a block, in order, and their packed pairs."""

    rows: list[ReadRow]
    packs: list[bytes]  # the pairs of all ReadPairs, in order, BLOCK to each
    unread: Counter[str]  # rows by the column that holds something and was not read

    def blocks(self, usable: Iterable[tuple[int, Item]]) -> Iterator[tuple[bytes, list[tuple[int, Item]]]]:
        """Yield the packed blocks, each with the usable pairs in it and their places there.

        ``usable`` has places among all pairs, and what goes with each.
        """
        within: list[list[tuple[int, Item]]] = [[] for _ in self.packs]
        for place, item in usable:
            within[place // BLOCK].append((place % BLOCK, item))
        return zip(self.packs, within, strict=True)


class RowReader:
    """Makes pairs of rows, each by itself."""

    def __init__(
        self,
        columns: Columns,
        on_reversed_scores: OnReversedScores,
        demonstrations: bool,
        ranked: RankedRule = "best_worst",
    ) -> None:
        self._columns, self._on_reversed, self._demonstrations = columns, on_reversed_scores, demonstrations
        self._ranked = ranked
        self._tables: set[str] = set()  # whose columns were checked

    def read(self, block: Iterable[RawRow]) -> ReadRows:
        """Read the rows of a block.

        Raises:
            CaldpoError: a table without the columns of any format.
        """
        rows: list[ReadRow] = []
        pairs: list[PreferencePair] = []
        unread: Counter[str] = Counter()
        for raw in block:
            try:
                read, own = self._row(raw, unread)
            except RowError as error:
                kind: Kind = "line" if raw.value is None else error.kind
                rows.append(ReadRow([Rejection(raw.origin, kind, error.reason)]))
            except RecursionError:
                rows.append(ReadRow([Rejection(raw.origin, "row", _TOO_DEEP)]))
            else:
                rows.append(read)
                pairs += own
        try:
            return ReadRows(rows, _packs(pairs), unread)
        except RecursionError:
            return ReadRows(*_without_too_deep(rows, pairs), unread)

    def _row(self, raw: RawRow, unread: Counter[str]) -> tuple[ReadRow, list[PreferencePair]]:
        if raw.table is not None and raw.table not in self._tables and isinstance(raw.value, dict):
            require_columns(list(raw.value), raw.table, self._columns)
            self._tables.add(raw.table)
        row = map_row(raw, self._columns)
        parsed = parse_row(row, raw.origin, self._ranked)
        settled = [_tried(settle_pair, pair, row) for pair in parsed.pairs]
        if isinstance(settled[0], RowError) and parsed.ranked is None:
            raise settled[0]
        if names := row.unread:
            unread.update(names)
            require_meaning(names)
        results: list[Rejection | ReadPair] = []
        pairs: list[PreferencePair] = []
        for made, pair in zip(parsed.pairs, settled, strict=True):
            checked = pair if isinstance(pair, RowError) else _tried(self._checked, pair)
            if isinstance(checked, RowError):
                results.append(Rejection(made.origin, checked.kind, checked.reason))
                continue
            pair, swapped = checked
            pairs.append(pair)
            signal = pair_signal(pair)
            results.append(ReadPair(PairFacts.of(pair), signal, parsed.format, pair.remarks, raw.note, swapped))
        return ReadRow(results, parsed.ranked), pairs

    def _checked(self, pair: PreferencePair) -> tuple[PreferencePair, bool]:
        """Check a pair and apply the policy for reversed scores; return whether its sides were exchanged, too."""
        check_pair(pair)
        if pair.demonstration and not self._demonstrations:
            raise RowError("has no rejected response, which this loss needs")
        return _agree_with_scores(pair, self._on_reversed)


def _tried(make: Callable[..., Made], *arguments: Any) -> Made | RowError:
    """Return what is made, or the error of one pair of a row: the others are not lost with it."""
    try:
        return make(*arguments)
    except RowError as error:
        return error


def _packs(pairs: Sequence[PreferencePair]) -> list[bytes]:
    return [pack(pairs[start : start + BLOCK]) for start in range(0, len(pairs), BLOCK)]


def _without_too_deep(rows: Sequence[ReadRow], pairs: Sequence[PreferencePair]) -> tuple[list[ReadRow], list[bytes]]:
    """Reject the pairs that are nested too deeply to be packed, and pack the others."""
    rest, packable, left = iter(pairs), list[PreferencePair](), list[ReadRow]()
    for row in rows:
        results: list[Rejection | ReadPair] = []
        for result in row.results:
            if isinstance(result, ReadPair):
                pair = next(rest)
                try:
                    pack([pair])
                except RecursionError:
                    result = Rejection(result.facts.origin, "row", _TOO_DEEP)
                else:
                    packable.append(pair)
            results.append(result)
        left.append(ReadRow(results, row.ranked))
    return left, _packs(packable)


def _agree_with_scores(pair: PreferencePair, on_reversed: OnReversedScores) -> tuple[PreferencePair, bool]:
    """Apply the policy for reversed scores; return whether the sides were exchanged, too."""
    if on_reversed == "keep" or not has_reversed_scores(pair):
        return pair, False
    if on_reversed == "reject":
        raise RowError(
            "the rejected response has the higher score, see data.on_reversed_scores "
            f"({pair.score_chosen:g} < {pair.score_rejected:g})"
        )
    exchanged = replace(
        pair,
        chosen=pair.rejected,
        chosen_extra=pair.rejected_extra,
        score_chosen=pair.score_rejected,
        rejected=pair.chosen,
        rejected_extra=pair.chosen_extra,
        score_rejected=pair.score_chosen,
    )
    return exchanged, True
