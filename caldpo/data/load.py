"""Load a source's rows as preference pairs, and account for every row that is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from caldpo.data.columns import Columns
from caldpo.data.data_report import LoadReport, Rejection, count_by_reason, list_counts
from caldpo.data.pair_checks import DegeneracyCheck
from caldpo.data.ranked import RankedRule
from caldpo.data.raw_row import PairSource
from caldpo.data.row_reader import OnReversedScores, ReadPair, RowReader
from caldpo.data.sources.file_checks import no_rows
from caldpo.data.stored_pairs import PairFacts, PairWriter, StoredPairs
from caldpo.errors import CaldpoError
from caldpo.utils.delayed_progress import tracked
from caldpo.utils.ordered_map import ordered_map
from caldpo.utils.text_format import counted

OnDegenerate = Literal["drop", "keep"]

# More would fill the memory: the file is not the preference data it is taken for, or a small compressed one that
# expands into endless repetition.
MAX_REJECTIONS = 2_000_000
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
    ranked: RankedRule = "best_worst",
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
        ranked: which pairs a row of several responses gives.
        writer: has stored the pairs of those data sets, and stores these behind them.

    Raises:
        CaldpoError: an unreadable split, one with more unusable rows than can be reported, or a table without the
            columns of any format.
    """
    report = LoadReport(split, notes=source.notes(split))
    degenerate, writer = degenerate or DegeneracyCheck(), PairWriter() if writer is None else writer
    first = len(writer)
    reader = RowReader(columns or Columns(), on_reversed_scores, demonstrations, ranked)
    for read in tracked(ordered_map(reader.read, source.blocks(split)), f"Reading {Path(split).name}"):
        usable: list[tuple[int, PairFacts]] = []
        place = 0  # of a pair among those of the block
        for row in read.rows:
            report.rows += 1
            if row.ranked is not None:
                report.ranked_rows += 1
                report.ranked_pairs += len(row.results)
                report.ties += row.ranked.ties
                report.unused_responses += row.ranked.unused
            for result in row.results:
                if len(report.rejections) >= MAX_REJECTIONS:
                    raise CaldpoError(
                        f"{MAX_REJECTIONS:,} of the first {report.rows:,} rows are unusable"
                        f" ({list_counts(report.counts())})",
                        key=split,
                        remedy="check that this is a file of preference pairs",
                    )
                if isinstance(result, Rejection):
                    report.rejections.append(result)
                    continue
                place += 1
                if reason := result.signal if isinstance(result.signal, str) else degenerate.repeats(result.signal):
                    if on_degenerate == "drop":
                        report.rejections.append(Rejection(result.facts.origin, "degenerate", reason))
                        continue
                    report.degenerate_kept[reason] += 1
                usable.append((place - 1, result.facts))
                _count(result, report)
        report.unread.update(read.unread)
        for block, facts in read.blocks(usable):
            writer.add_packed(block, facts)
    pairs = writer.pairs(first)
    report.kept = len(pairs)
    return pairs, report


def _count(pair: ReadPair, report: LoadReport) -> None:
    """Count a usable pair in the report."""
    facts = pair.facts
    report.formats[pair.format] += 1
    report.remarks.update(pair.remarks)
    if pair.note is not None:
        count, origin = report.odd.get(pair.note, (0, facts.origin))
        report.odd[pair.note] = (count + 1, origin)
    report.swapped += pair.swapped
    report.with_scores += facts.is_scored
    report.desirable += facts.label is True
    report.undesirable += facts.label is False


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
    lines = [f"{len(every):,} of {_all_described(reports)} cannot be used"]
    for report, bad in zip(reports, by_split, strict=True):
        if bad:
            lines.append(f"  {report.split}: {len(bad):,} of {report.described()}")
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


def _all_described(reports: Sequence[LoadReport]) -> str:
    several = any(report.ranked_rows for report in reports)
    count = sum(report.rows - report.ranked_rows + report.ranked_pairs for report in reports)
    return counted(count, "pair" if several else "row")


def require_pairs(report: LoadReport) -> None:
    """Check that a split has any pair at all; otherwise report what became of its rows."""
    if not report.rows:
        raise no_rows(report.split)
    if not report.kept:
        raise CaldpoError(
            f"none of its {counted(report.rows, 'row')} is a usable pair\n{report.summary()}", key=report.split
        )
