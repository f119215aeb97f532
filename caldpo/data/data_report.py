"""What became of a run's data: for the terminal at its start, and for ``summary.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caldpo.data.load import LoadReport
from caldpo.data.split import prompt_key
from caldpo.data.tokenize import TokenCounts, TokenizedSplit

QUANTILES = {"median": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}
PARTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class SplitReport:
    """The pairs of a split as they go into batches.

    Args:
        pairs, prompts: how many, and how many distinct prompts.
        left_out: usable pairs beyond ``max_train_pairs`` or ``max_test_pairs``.
        dropped: pairs dropped after they were read, by reason.
        counts: what tokenisation did.
        lengths: tokens by part (prompt, chosen, rejected) and quantile, after truncation.
    """

    pairs: int
    prompts: int
    left_out: int
    dropped: dict[str, int]
    counts: TokenCounts
    lengths: dict[str, dict[str, int]]

    @classmethod
    def of(cls, split: TokenizedSplit, dropped: dict[str, int], left_out: int) -> SplitReport:
        """The report of a tokenised split."""
        return cls(
            pairs=len(split.pairs),
            prompts=len({prompt_key(pair.prompt) for pair in split.sources}),
            left_out=left_out,
            dropped=dropped,
            counts=split.counts,
            lengths=length_quantiles(split.pairs.lengths()),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``summary.json`` holds them."""
        counts = self.counts
        return {
            "pairs": self.pairs,
            "prompts": self.prompts,
            "left_out": self.left_out,
            "dropped": self.dropped,
            "truncated": {
                "prompt": counts.prompts_truncated,
                "chosen": counts.chosen_truncated,
                "rejected": counts.rejected_truncated,
            },
            "identical_after_truncation": counts.identical,
            "boundary_merges": counts.boundary_merges,
            "eos_stripped": counts.eos_stripped,
            "eos_appended": counts.eos_appended,
            "special_as_text": counts.special_as_text,
            "special_in_prompts": counts.special_in_prompts,
            "turns_rewritten": counts.turns_rewritten,
            "unknown": counts.unknown_share,
            "lengths": self.lengths,
        }


@dataclass(frozen=True, slots=True)
class DataReport:
    """Everything that happened between the source's rows and the batches.

    Args:
        source: its name.
        loads: one account for each split that was read; one alone where the test split was cut from it.
        train, test: the two splits.
        max_length, max_prompt_length: the limits, in tokens.
        prompts: where they got their form from.
        notes: on how the splits were put together.
    """

    source: str
    loads: Sequence[LoadReport]
    train: SplitReport
    test: SplitReport
    max_length: int
    max_prompt_length: int
    prompts: str
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``summary.json`` holds them."""
        return {
            "source": self.source,
            "prompts": self.prompts,
            "notes": list(self.notes),
            "max_length": self.max_length,
            "max_prompt_length": self.max_prompt_length,
            "read": [
                {
                    "split": load.split,
                    "rows": load.rows,
                    "kept": load.kept,
                    "formats": load.formats,
                    "with_scores": load.with_scores,
                    "swapped": load.swapped,
                    "rejected": load.counts(),
                    "degenerate_kept": load.degenerate_kept,
                    "notes": list(load.notes),
                    "odd": {what: count for what, (count, _) in load.odd.items()},
                    "unread": load.unread,
                    "remarks": load.remarks,
                }
                for load in self.loads
            ],
            "train": self.train.as_dict(),
            "test": self.test.as_dict(),
        }


def length_quantiles(lengths: np.ndarray) -> dict[str, dict[str, int]]:
    """Lengths in tokens, shape ``(pairs, 3)``, as quantiles by part; each is a length that occurs."""
    values = np.quantile(lengths, list(QUANTILES.values()), axis=0, method="inverted_cdf").astype(int)
    return {
        part: dict(zip(QUANTILES, column.tolist(), strict=True)) for part, column in zip(PARTS, values.T, strict=True)
    }


def print_report(report: DataReport, console: Console) -> None:
    """Announce the data: formats, what was left out and cut, and how long the pairs are."""
    console.print(Text.assemble(("Data ", "bold"), f"{report.source}, prompts: {report.prompts}"))
    for load in report.loads:
        console.print(Text(load.summary()))
    for note in report.notes:
        console.print(Text(note))
    limits = f"{report.max_length:,} (the prompt of a longer one cut to {report.max_prompt_length:,})"
    console.print(Text(f"tokens of a pair: at most {limits}"))
    table = Table()
    table.add_column("split")
    table.add_column("tokens of")
    for name in QUANTILES:
        table.add_column(name, justify="right")
    splits = {"train": report.train, "test": report.test}
    for name, split in splits.items():
        for part, quantiles in split.lengths.items():
            label = name if part == PARTS[0] else ""
            table.add_row(label, part, *(f"{value:,}" for value in quantiles.values()))
    console.print(table)
    for name, split in splits.items():
        console.print(Text(f"{name}: {split.pairs:,} pairs of {split.prompts:,} prompts{_remarks(split)}"))


def _remarks(split: SplitReport) -> str:
    counts = split.counts
    words = {
        **{f"dropped: {count:,} {reason}": count for reason, count in split.dropped.items()},
        f"left out as a subset was asked for: {split.left_out:,} pairs": split.left_out,
        f"truncated: {counts.prompts_truncated:,} prompts, {counts.chosen_truncated:,} chosen, "
        f"{counts.rejected_truncated:,} rejected": counts.prompts_truncated
        + counts.chosen_truncated
        + counts.rejected_truncated,
        f"pairs whose responses are the same tokens: {counts.identical:,}": counts.identical,
        f"responses tokenised apart from their prompt: {counts.boundary_merges:,}": counts.boundary_merges,
        f"EOS tokens taken out of responses: {counts.eos_stripped:,}": counts.eos_stripped,
        f"responses the template did not end with EOS: {counts.eos_appended:,}": counts.eos_appended,
        f"pairs whose own text spells out special tokens, kept as text: {counts.special_as_text:,}": (
            counts.special_as_text
        ),
        f"text prompts that spell out special tokens, which are taken for them: {counts.special_in_prompts:,}": (
            counts.special_in_prompts
        ),
        f"earlier assistant turns that the template rewrote: {counts.turns_rewritten:,}": counts.turns_rewritten,
        f"tokens outside the vocabulary: {counts.unknown_share:.2%}": counts.unknown,
    }
    return "".join(f"\n  {text}" for text, count in words.items() if count)
