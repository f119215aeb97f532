"""Count what became of a split's rows, and what tokenisation did to its pairs. No heavy imports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from caldpo.data.raw_row import shown_name
from caldpo.utils.text_format import counted

Kind = Literal["line", "row", "degenerate", "filtered"]
"""No JSON object, no usable pair, no or contradictory signal, a valid row of another task."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that gave no pair."""

    origin: str  # file and line, or split and row
    kind: Kind
    reason: str  # a fixed phrase, with this row's details in parentheses at its end

    @property
    def category(self) -> str:
        """The reason without its details, to count by."""
        return self.reason.split(" (")[0]


@dataclass
class LoadReport:
    """What became of the rows of one split; ``rows - ranked_rows + ranked_pairs == kept + len(rejections)``."""

    split: str  # as it was asked for
    rows: int = 0  # read, blank lines not counted
    kept: int = 0  # usable pairs
    formats: Counter[str] = field(default_factory=Counter)  # usable pairs by format
    rejections: list[Rejection] = field(default_factory=list)  # the other rows, in order
    with_scores: int = 0  # usable pairs with both ground-truth rewards
    swapped: int = 0  # usable pairs whose sides were exchanged to agree with their scores
    degenerate_kept: Counter[str] = field(default_factory=Counter)  # by reason
    notes: Sequence[str] = ()  # which files the split stands for, and what was left out; a line each
    odd: dict[str, tuple[int, str]] = field(default_factory=dict)  # odd usable rows: count and first origin, by reason
    unread: Counter[str] = field(default_factory=Counter)  # rows by the column that holds something and was not read
    remarks: Counter[str] = field(default_factory=Counter)  # usable pairs by what was done to make a pair of their row
    desirable: int = 0  # usable rows with one response and the label that it is desirable
    undesirable: int = 0  # likewise, that it is not
    ranked_rows: int = 0  # rows of several responses that gave pairs
    ranked_pairs: int = 0  # their pairs, usable or not
    ties: int = 0  # pairs of tied responses in them, which are left out
    unused_responses: int = 0  # responses of them that are in no pair

    def counts(self, *kinds: Kind) -> dict[str, int]:
        """Count rejections by reason, most frequent first; of the given kinds, or of all."""
        return count_by_reason(r for r in self.rejections if not kinds or r.kind in kinds)

    def described(self) -> str:
        """Return the number of rows, or of the rows and the pairs of rows of several responses."""
        count = self.rows - self.ranked_rows + self.ranked_pairs
        return counted(count, "pair" if self.ranked_rows else "row")

    def summary(self) -> str:
        """Summarise in a few lines: formats, usable pairs, and what was left out and why."""
        detected = ", ".join(f"{name} {n:,}" for name, n in sorted(self.formats.items())) or "none"
        lines = [
            f"{self.split}: {self.kept:,} of {self.described()} kept (format: {detected}; "
            f"{self.with_scores:,} with scores)",
            *(f"  {note}" for note in self.notes),
        ]
        if self.desirable or self.undesirable:
            lines.append(f"  unpaired: {self.desirable:,} desirable, {self.undesirable:,} undesirable responses")
        if self.ranked_rows:
            lines.append(
                f"  {counted(self.ranked_rows, 'row')} of several responses gave {counted(self.ranked_pairs, 'pair')}"
                f" (ties left out: {self.ties:,}; responses in no pair: {self.unused_responses:,}; see data.ranked)"
            )
        titles: dict[Kind, str] = {
            "line": "unreadable lines",
            "row": "unusable rows",
            "degenerate": "degenerate pairs dropped",
            "filtered": "rows of another task left out",
        }
        for kind, title in titles.items():
            if counts := self.counts(kind):
                lines.append(f"  {title}: {list_counts(counts)}")
        if self.degenerate_kept:
            lines.append(f"  degenerate pairs kept: {list_counts(self.degenerate_kept)}")
        lines += [f"  {what}: {count:,} (first {first})" for what, (count, first) in self.odd.items()]
        if self.swapped:
            lines.append(f"  sides exchanged to agree with their scores: {self.swapped:,}")
        if self.remarks:
            lines.append(f"  {list_counts(self.remarks)}")
        if self.unread:
            columns = (f"{shown_name(name)} ({counted(n, 'row')})" for name, n in sorted(self.unread.items()))
            lines.append(f"  columns not read: {', '.join(columns)}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``summary.json``, rejections and odd rows as counts."""
        own = {own.name: getattr(self, own.name) for own in fields(self) if own.name != "rejections"}
        odd = {what: count for what, (count, _) in self.odd.items()}
        return own | {"rejected": self.counts(), "notes": list(self.notes), "odd": odd}


@dataclass(slots=True)
class TokenCounts:
    """What tokenisation did, counted over all pairs of a split."""

    prompts_truncated: int = 0
    chosen_truncated: int = 0
    rejected_truncated: int = 0
    identical: int = 0  # pairs whose responses are the same tokens, mostly once truncated
    boundary_merges: int = 0  # responses tokenised apart from their prompt
    eos_stripped: int = 0  # EOS tokens in the responses' own text
    eos_appended: int = 0  # responses that the chat template did not end with EOS
    special_as_text: int = 0  # pairs whose own text spells out special tokens, which stay text
    special_in_prompts: int = 0  # text prompts that spell out special tokens, which are taken for them
    turns_rewritten: int = 0  # earlier assistant turns that the chat template rewrote or left out
    tokens: int = field(default=0, compare=False)  # of all pairs, those dropped later included
    unknown: int = field(default=0, compare=False)  # of these, tokens for text outside the vocabulary

    def add(self, other: TokenCounts) -> None:
        """Add the counts of other pairs."""
        for own in fields(self):
            setattr(self, own.name, getattr(self, own.name) + getattr(other, own.name))

    @property
    def unknown_share(self) -> float:
        """The share of tokens that stand for text outside the vocabulary."""
        return self.unknown / self.tokens if self.tokens else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``summary.json``."""
        truncated = {
            "prompt": self.prompts_truncated,
            "chosen": self.chosen_truncated,
            "rejected": self.rejected_truncated,
        }
        names = ("boundary_merges", "eos_stripped", "eos_appended", "special_as_text", "special_in_prompts")
        return {
            "truncated": truncated,
            "identical_after_truncation": self.identical,
            **{name: getattr(self, name) for name in (*names, "turns_rewritten")},
            "unknown": self.unknown_share,
        }


def count_by_reason(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Count rejections by reason without its details, most frequent first."""
    return dict(Counter(rejection.category for rejection in rejections).most_common())


def list_counts(counts: Mapping[str, int]) -> str:
    """List counts on one line, the highest first: ``3 `chosen` is null; 1 not JSON``."""
    return "; ".join(f"{n:,} {reason}" for reason, n in Counter(counts).most_common())
