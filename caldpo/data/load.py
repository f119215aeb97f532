"""Load a source's rows as preference pairs, and account for every row that is left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from caldpo.data.columns import Columns, require_meaning
from caldpo.data.data_report import Kind, LoadReport, Rejection, count_by_reason, list_counts
from caldpo.data.formats import require_columns
from caldpo.data.pair import PreferencePair
from caldpo.data.pair_checks import DegeneracyCheck, check_pair, has_reversed_scores
from caldpo.data.raw_row import PairSource, RowError
from caldpo.data.row_parsing import map_row, parse_row
from caldpo.data.sources.file_checks import no_rows
from caldpo.errors import CaldpoError
from caldpo.utils.delayed_progress import tracked
from caldpo.utils.text_format import counted

OnDegenerate = Literal["drop", "keep"]
OnReversedScores = Literal["reject", "swap", "keep"]

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
) -> tuple[list[PreferencePair], LoadReport]:
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

    Raises:
        CaldpoError: an unreadable split, one with more unusable rows than can be reported, or a table without the
            columns of any format.
    """
    report, pairs = LoadReport(split, notes=source.notes(split)), []
    columns, degenerate = columns or Columns(), DegeneracyCheck() if degenerate is None else degenerate
    tables: set[str] = set()  # whose columns were checked
    for raw in tracked(source.rows(split), f"Reading {Path(split).name}"):
        report.rows += 1
        if len(report.rejections) >= MAX_REJECTIONS:
            raise CaldpoError(
                f"{MAX_REJECTIONS:,} of the first {report.rows:,} rows are unusable ({list_counts(report.counts())})",
                key=split,
                remedy="check that this is a file of preference pairs",
            )
        if raw.table is not None and raw.table not in tables and isinstance(raw.value, dict):
            require_columns(list(raw.value), raw.table, columns)
            tables.add(raw.table)
        try:
            row = map_row(raw, columns)
            pair, format_name = parse_row(row, raw.origin)
            if unread := row.unread:
                report.unread.update(unread)
                require_meaning(unread)
            check_pair(pair)
            if pair.demonstration and not demonstrations:
                raise RowError("has no rejected response, which this loss needs")
            pair, swapped = _agree_with_scores(pair, on_reversed_scores)
        except RowError as error:
            kind: Kind = "line" if raw.value is None else error.kind
            report.rejections.append(Rejection(raw.origin, kind, error.reason))
            continue
        if reason := degenerate.reason(pair):
            if on_degenerate == "drop":
                report.rejections.append(Rejection(raw.origin, "degenerate", reason))
                continue
            report.degenerate_kept[reason] += 1
        pairs.append(pair)
        report.formats[format_name] += 1
        report.remarks.update(pair.remarks)
        if raw.note is not None:
            count, first = report.odd.get(raw.note, (0, pair.origin))
            report.odd[raw.note] = (count + 1, first)
        report.swapped += swapped
        report.with_scores += pair.has_scores
    report.kept = len(pairs)
    return pairs, report


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


def write_rejections(reports: Iterable[LoadReport], path: Path) -> None:
    """Write every rejection as a JSON line {split, origin, kind, reason}; an empty file where nothing was rejected."""
    lines = [json.dumps({"split": rep.split, **asdict(rejection)}) for rep in reports for rejection in rep.rejections]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


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
