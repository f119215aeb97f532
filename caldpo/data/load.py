"""Load a source's rows as preference pairs, and account for every row that is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from caldpo.data.columns import Columns, require_meaning
from caldpo.data.data_report import Kind, LoadReport, Rejection, count_by_reason, list_counts
from caldpo.data.formats import require_columns
from caldpo.data.pair import PreferencePair
from caldpo.data.pair_checks import DegeneracyCheck, check_pair, has_reversed_scores, pair_signal
from caldpo.data.raw_row import PairSource, RawRow, RowError
from caldpo.data.row_parsing import map_row, parse_row
from caldpo.data.sources.file_checks import no_rows
from caldpo.data.stored_pairs import PairFacts, PairWriter, StoredPairs, pack
from caldpo.errors import CaldpoError
from caldpo.utils.delayed_progress import tracked
from caldpo.utils.ordered_map import ordered_map
from caldpo.utils.text_format import counted

OnDegenerate = Literal["drop", "keep"]
OnReversedScores = Literal["reject", "swap", "keep"]

# More would fill the memory: the file is not the preference data it is taken for, or a small compressed one that
# expands into endless repetition.
MAX_REJECTIONS = 2_000_000
_TOO_DEEP = "nested too deeply"
_SHOWN = 10  # bad rows of a split named in an error; the file has the rest


def load_pairs(
    source: PairSource,
    split: str,
    *,
    on_degenerate: OnDegenerate = "drop",
    on_reversed_scores: OnReversedScores = "reject",
    demonstrations: bool = False,
    degenerate: DegeneracyCheck | None = None,
    columns: Columns | None = None,
    writer: PairWriter | None = None,
) -> tuple[StoredPairs, LoadReport]:
    """Read a whole split and return its usable pairs, in order; the report lists all other rows.

    :func:`refuse_bad_rows` and :func:`require_pairs` decide whether such rows are an error.

    Args:
        source: of the rows.
        split: a name that the source knows.
        on_degenerate: ``drop`` leaves out pairs without signal; ``keep`` keeps and counts them (the
            differences in a loss are then 0, never NaN).
        on_reversed_scores: for pairs whose rejected score is the higher one: ``reject`` makes them unusable
            rows, ``swap`` exchanges the sides, ``keep`` trusts the label over the scores.
        demonstrations: accept rows with a response to imitate and none to compare it with; otherwise they are unusable.
        degenerate: has seen the pairs of other data sets that these are joined to, so that none is taken twice.
        columns: the mapping from columns to roles; None goes by the usual names.
        writer: has stored the pairs of those data sets, and stores these behind them.

    Raises:
        CaldpoError: an unreadable split, one with more unusable rows than can be reported, or a table without the
            columns of any format.
    """
    report = LoadReport(split, notes=source.notes(split))
    degenerate, writer = degenerate or DegeneracyCheck(), PairWriter() if writer is None else writer
    first = len(writer)
    reader = RowReader(columns or Columns(), on_reversed_scores, demonstrations)
    for read in tracked(ordered_map(reader.read, source.blocks(split)), f"Reading {Path(split).name}"):
        usable: list[tuple[int, PairFacts]] = []
        place = 0  # of a pair in its block
        for row in read.rows:
            report.rows += 1
            if len(report.rejections) >= MAX_REJECTIONS:
                raise CaldpoError(
                    f"{MAX_REJECTIONS:,} of the first {report.rows:,} rows are unusable"
                    f" ({list_counts(report.counts())})",
                    key=split,
                    remedy="check that this is a file of preference pairs",
                )
            if isinstance(row, Rejection):
                report.rejections.append(row)
                continue
            place += 1
            if reason := row.signal if isinstance(row.signal, str) else degenerate.repeats(row.signal):
                if on_degenerate == "drop":
                    report.rejections.append(Rejection(row.facts.origin, "degenerate", reason))
                    continue
                report.degenerate_kept[reason] += 1
            usable.append((place - 1, row.facts))
            report.formats[row.format] += 1
            report.remarks.update(row.remarks)
            if row.note is not None:
                count, origin = report.odd.get(row.note, (0, row.facts.origin))
                report.odd[row.note] = (count + 1, origin)
            report.swapped += row.swapped
            report.with_scores += None not in row.facts.scores
        report.unread.update(read.unread)
        writer.add_packed(read.pairs, usable)
    pairs = writer.pairs(first)
    report.kept = len(pairs)
    return pairs, report


@dataclass(frozen=True, slots=True)
class ReadPair:
    """What is reported of a row that gave a pair."""

    facts: PairFacts
    signal: str | tuple[bytes, bool]  # see pair_signal
    format: str
    remarks: tuple[str, ...]
    note: str | None  # of the row
    swapped: bool


@dataclass(frozen=True, slots=True)
class ReadRows:
    """The rows of a block, in order, and its packed pairs."""

    rows: list[Rejection | ReadPair]
    pairs: bytes  # those of the ReadPairs, in order
    unread: Counter[str]  # rows by the column that holds something and was not read


class RowReader:
    """Makes pairs of rows, each by itself."""

    def __init__(self, columns: Columns, on_reversed_scores: OnReversedScores, demonstrations: bool) -> None:
        self._columns, self._on_reversed, self._demonstrations = columns, on_reversed_scores, demonstrations
        self._tables: set[str] = set()  # whose columns were checked

    def read(self, block: Iterable[RawRow]) -> ReadRows:
        """Read the rows of a block.

        Raises:
            CaldpoError: a table without the columns of any format.
        """
        rows: list[Rejection | ReadPair] = []
        pairs: list[PreferencePair] = []
        unread: Counter[str] = Counter()
        for raw in block:
            try:
                read, pair = self._pair(raw, unread)
            except RowError as error:
                kind: Kind = "line" if raw.value is None else error.kind
                rows.append(Rejection(raw.origin, kind, error.reason))
            except RecursionError:
                rows.append(Rejection(raw.origin, "row", _TOO_DEEP))
            else:
                rows.append(read)
                pairs.append(pair)
        try:
            return ReadRows(rows, pack(pairs), unread)
        except RecursionError:
            return ReadRows(*_without_too_deep(rows, pairs), unread)

    def _pair(self, raw: RawRow, unread: Counter[str]) -> tuple[ReadPair, PreferencePair]:
        if raw.table is not None and raw.table not in self._tables and isinstance(raw.value, dict):
            require_columns(list(raw.value), raw.table, self._columns)
            self._tables.add(raw.table)
        row = map_row(raw, self._columns)
        pair, format_name = parse_row(row, raw.origin)
        if names := row.unread:
            unread.update(names)
            require_meaning(names)
        check_pair(pair)
        if pair.demonstration and not self._demonstrations:
            raise RowError("has no rejected response, which this loss needs")
        pair, swapped = _agree_with_scores(pair, self._on_reversed)
        facts = PairFacts.of(pair)
        return ReadPair(facts, pair_signal(pair), format_name, pair.remarks, raw.note, swapped), pair


def _without_too_deep(
    rows: Sequence[Rejection | ReadPair], pairs: Sequence[PreferencePair]
) -> tuple[list[Rejection | ReadPair], bytes]:
    """Reject the rows of pairs that are nested too deeply to be packed, and pack the others."""
    rest, packable, results = iter(pairs), list[PreferencePair](), list[Rejection | ReadPair]()
    for row in rows:
        if isinstance(row, ReadPair):
            pair = next(rest)
            try:
                pack([pair])
            except RecursionError:
                row = Rejection(row.facts.origin, "row", _TOO_DEEP)
            else:
                packable.append(pair)
        results.append(row)
    return results, pack(packable)


def refuse_bad_rows(reports: Sequence[LoadReport], listed_in: Path) -> None:
    """Check that no row of any split was an unreadable line or an unusable row.

    Raises:
        CaldpoError: the number of such rows in all splits, by split and by reason, the first of each split, and the
            file ``listed_in``, which lists them all.
    """
    by_split = [[r for r in report.rejections if r.kind in ("line", "row")] for report in reports]
    every = [rejection for bad in by_split for rejection in bad]
    if not every:
        return
    lines = [f"{len(every):,} of {counted(sum(report.rows for report in reports), 'row')} cannot be used"]
    for report, bad in zip(reports, by_split, strict=True):
        if bad:
            lines.append(f"  {report.split}: {len(bad):,} of {counted(report.rows, 'row')}")
        lines += [f"    {r.origin}: {r.reason}" for r in bad[:_SHOWN]]
        if len(bad) > _SHOWN:
            lines.append(f"    ... and {len(bad) - _SHOWN:,} more")
    lines.append(f"  By reason: {list_counts(count_by_reason(every))}")
    lines.append(f"  {listed_in} lists every one of them")
    raise CaldpoError(
        "\n".join(lines),
        key="data.on_invalid",
        value="error",
        remedy="mend or remove these rows, or set data.on_invalid=skip to leave them out, counted and listed",
    )


def require_pairs(report: LoadReport) -> None:
    """Check that a split has any pair at all; otherwise report what became of its rows."""
    if not report.rows:
        raise no_rows(report.split)
    if not report.kept:
        raise CaldpoError(
            f"none of its {counted(report.rows, 'row')} is a usable pair\n{report.summary()}", key=report.split
        )


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
