"""From a source's raw rows to preference pairs, with an account of every row that is left out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track

from caldpo.data.columns import Columns, MappedRow, reading_with, require_meaning
from caldpo.data.formats import detect, formats
from caldpo.data.pair import PreferencePair
from caldpo.data.pair_checks import DegeneracyCheck, check_pair, has_reversed_scores
from caldpo.data.prompt_context import with_context
from caldpo.data.raw_row import PairSource, RawRow, RowError
from caldpo.data.repeated_prompt import without_prompt
from caldpo.data.sources._file_names import no_rows
from caldpo.errors import CaldpoError

Kind = Literal["line", "row", "degenerate", "filtered"]
OnDegenerate = Literal["drop", "keep"]
OnReversedScores = Literal["reject", "swap", "keep"]

# Beyond so many the account itself would fill the memory: the file is something else than the preference data it is
# taken for, or a small compressed one that expands into endless repetition.
MAX_REJECTIONS = 2_000_000
_SHOWN = 10  # bad rows of a split named in an error; the file has the rest


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that gave no pair.

    Args:
        origin: file and line, or split and row.
        kind: ``line`` (no JSON object), ``row`` (no usable pair), ``degenerate`` (no or contradictory signal)
            or ``filtered`` (a sound row of another task).
        reason: a fixed phrase, with this row's details in parentheses at its end.
    """

    origin: str
    kind: Kind
    reason: str

    @property
    def category(self) -> str:
        """The reason without its details, to count by."""
        return self.reason.split(" (")[0]


@dataclass
class LoadReport:
    """What became of the rows of one split; ``rows == kept + len(rejections)``.

    Args:
        split: as it was asked for.
        rows: rows read; blank lines are none.
        kept: pairs handed on.
        formats: kept pairs by format.
        rejections: the other rows, in order.
        with_scores: kept pairs that have both ground-truth rewards.
        swapped: kept pairs whose sides were exchanged to agree with their scores.
        degenerate_kept: kept pairs by the reason for which they are degenerate.
        notes: which files the split stands for, and what was left out; a line each.
        odd: kept pairs whose rows are odd: how many, and the first one's origin, by what is odd about them.
        unread: rows by the column that holds something in them and was not read.
        remarks: kept pairs by what was done to make a pair of their row.
    """

    split: str
    rows: int = 0
    kept: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    with_scores: int = 0
    swapped: int = 0
    degenerate_kept: dict[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    odd: dict[str, tuple[int, str]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)

    def counts(self, *kinds: Kind) -> dict[str, int]:
        """Rejections by reason, most frequent first; of the given kinds, or of all."""
        found = Counter(r.category for r in self.rejections if not kinds or r.kind in kinds)
        return dict(found.most_common())

    def summary(self) -> str:
        """A few lines for a person: formats, kept, and what was left out and why."""
        detected = ", ".join(f"{name} {n:,}" for name, n in sorted(self.formats.items())) or "none"
        lines = [
            f"{self.split}: {self.kept:,} of {self.rows:,} rows kept (format: {detected}; "
            f"{self.with_scores:,} with scores)",
            *(f"  {note}" for note in self.notes),
        ]
        titles: dict[Kind, str] = {
            "line": "unreadable lines",
            "row": "unusable rows",
            "degenerate": "degenerate pairs dropped",
            "filtered": "rows of another task left out",
        }
        for kind, title in titles.items():
            if counts := self.counts(kind):
                lines.append(f"  {title}: {_listed(counts)}")
        if self.degenerate_kept:
            lines.append(f"  degenerate pairs kept: {_listed(self.degenerate_kept)}")
        lines += [f"  {what}: {count:,} (first {first})" for what, (count, first) in self.odd.items()]
        if self.swapped:
            lines.append(f"  sides exchanged to agree with their scores: {self.swapped:,}")
        if self.remarks:
            lines.append(f"  {_listed(self.remarks)}")
        if self.unread:
            lines.append(f"  columns not read: {', '.join(f'{name} ({n:,} rows)' for name, n in self.unread.items())}")
        return "\n".join(lines)


def load_pairs(
    source: PairSource,
    split: str,
    *,
    on_degenerate: OnDegenerate = "drop",
    on_reversed_scores: OnReversedScores = "reject",
    demonstrations: bool = False,
    degenerate: DegeneracyCheck | None = None,
    columns: Columns | None = None,
    console: Console | None = None,
) -> tuple[list[PreferencePair], LoadReport]:
    """Read a split whole and keep its usable pairs, in order; what cannot be used is in the report.

    Whether that may be is for :func:`refuse_bad_rows` and :func:`require_pairs` to say.

    Args:
        source: where the rows come from.
        split: what to ask the source for.
        on_degenerate: ``drop`` leaves out pairs without signal; ``keep`` keeps and counts them (the
            differences in a loss are then 0, never NaN).
        on_reversed_scores: of pairs whose rejected score is the higher one: ``reject`` makes them unusable
            rows, ``swap`` exchanges the sides, ``keep`` trusts the label over the scores.
        demonstrations: take rows that have a response to imitate and none to compare it with; otherwise they are
            unusable rows.
        degenerate: has seen the pairs of other data sets that these are joined to, so that none is taken twice.
        columns: which column plays which role; None goes by the usual names.
        console: where the progress bar goes if that is a terminal; None is stderr.

    Returns:
        The pairs, each with its origin, and the account of all rows.

    Raises:
        CaldpoError: an unreadable split, one with more useless rows than can be accounted for, or a table without
            the columns of any format.
    """
    tell = getattr(source, "notes", None)
    report, pairs = LoadReport(split, notes=() if tell is None else tell(split)), []
    columns, degenerate = columns or Columns(), DegeneracyCheck() if degenerate is None else degenerate
    kept_formats: Counter[str] = Counter()
    kept_degenerate: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    with reading_with(columns):
        for raw in _progress(source.rows(split), split, console or Console(stderr=True)):
            report.rows += 1
            if len(report.rejections) >= MAX_REJECTIONS:
                raise _hopeless(report)
            try:
                row = _mapped(raw, columns)
                pair, format_name = _parse(row)
                unread.update(row.unread)
                require_meaning(row.unread)
                pair = replace(pair, origin=raw.origin)
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
                kept_degenerate[reason] += 1
            pairs.append(pair)
            kept_formats[format_name] += 1
            remarks.update(pair.remarks)
            if raw.note is not None:
                count, first = report.odd.get(raw.note, (0, pair.origin))
                report.odd[raw.note] = (count + 1, first)
            report.swapped += swapped
            report.with_scores += pair.has_scores
    report.kept = len(pairs)
    report.formats = dict(sorted(kept_formats.items()))
    report.degenerate_kept = dict(kept_degenerate.most_common())
    report.unread, report.remarks = dict(sorted(unread.items())), dict(remarks.most_common())
    return pairs, report


def refuse_bad_rows(reports: Sequence[LoadReport], listed_in: str | os.PathLike[str]) -> None:
    """Check that no row of any split was an unreadable line or an unusable row.

    Args:
        reports: one for each split.
        listed_in: the file that has all rejections already, for the message, which shows the first rows alone.

    Raises:
        CaldpoError: the number of such rows in all splits, by split and by reason, and the first of each split.
    """
    found = [[r for r in report.rejections if r.kind in ("line", "row")] for report in reports]
    every = [rejection for bad in found for rejection in bad]
    if not every:
        return
    lines = [f"{len(every):,} of {sum(report.rows for report in reports):,} rows cannot be used"]
    for report, bad in zip(reports, found, strict=True):
        if bad:
            lines.append(f"  {report.split}: {len(bad):,} of {report.rows:,} rows")
        lines += [f"    {r.origin}: {r.reason}" for r in bad[:_SHOWN]]
        if len(bad) > _SHOWN:
            lines.append(f"    ... and {len(bad) - _SHOWN:,} more")
    lines.append(f"  By reason: {_listed(dict(Counter(r.category for r in every).most_common()))}")
    lines.append(f"  {os.fspath(listed_in)} lists every one of them")
    raise CaldpoError(
        "\n".join(lines),
        key="data.on_invalid",
        value="error",
        remedy="mend or remove these rows, or set data.on_invalid=skip to leave them out, counted and listed",
    )


def require_pairs(report: LoadReport) -> None:
    """Check that a split has any pair at all.

    Raises:
        CaldpoError: it has none; the message says what became of its rows.
    """
    if not report.rows:
        raise no_rows(report.split)
    if not report.kept:
        raise CaldpoError(f"none of its {report.rows:,} rows is a usable pair\n{report.summary()}", key=report.split)


def write_rejections(reports: LoadReport | Iterable[LoadReport], path: str | os.PathLike[str]) -> int:
    """Write every rejection as a JSON line {split, origin, kind, reason}.

    Args:
        reports: one report or several.
        path: the file, replaced if it is there; an empty file says that nothing was rejected.

    Returns:
        The number of lines.
    """
    every = [reports] if isinstance(reports, LoadReport) else list(reports)
    lines = [json.dumps({"split": rep.split, **asdict(rej)}) for rep in every for rej in rep.rejections]
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def _hopeless(report: LoadReport) -> CaldpoError:
    counts = _listed(report.counts())
    return CaldpoError(
        f"{len(report.rejections):,} of the first {report.rows:,} rows are of no use ({counts})",
        key=report.split,
        remedy="look at what this file really holds",
    )


def _mapped(raw: RawRow, columns: Columns) -> MappedRow:
    if raw.error is not None:
        raise RowError(raw.error)
    if not isinstance(raw.value, dict):
        raise RowError(f"not an object (but {type(raw.value).__name__})")
    return columns.mapped(raw.value)


def _parse(row: MappedRow) -> tuple[PreferencePair, str]:
    name = detect(dict(row))
    pair = formats()[name].parse(row)
    pair = replace(pair, remarks=(*row.remarks, *pair.remarks))
    pair = with_context(without_prompt(pair), row)
    if isinstance(pair.prompt, str) and not (pair.prompt[-1:].isspace() or pair.chosen[:1].isspace()):
        pair = replace(pair, remarks=(*pair.remarks, "rows whose response follows its prompt without a space"))
    return pair, name


def _agree_with_scores(pair: PreferencePair, on_reversed: OnReversedScores) -> tuple[PreferencePair, bool]:
    """The pair under the policy for reversed scores, and whether its sides were exchanged."""
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
        rejected=pair.chosen,
        score_chosen=pair.score_rejected,
        score_rejected=pair.score_chosen,
    )
    return exchanged, True


def _listed(counts: dict[str, int]) -> str:
    return "; ".join(f"{n:,} {reason}" for reason, n in counts.items())


def _progress(rows: Iterator[RawRow], split: str, console: Console) -> Iterable[RawRow]:
    """Show a bar of unknown length on a terminal; say nothing in a log file."""
    return track(rows, f"Reading {Path(split).name}", console=console, transient=True, disable=not console.is_terminal)
