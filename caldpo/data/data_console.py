"""Report a run's data at its start: counts and lengths, and a few tokenised pairs with the tokens that bear loss.

A doubled BOS or EOS, a missing template or a lost question is seen here in a second, elsewhere in a week.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from caldpo.data.data_report import LoadReport, TokenCounts
from caldpo.data.end_tokens import trained_ends
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.data.tokenize import TokenizedSplit
from caldpo.utils.text_format import counted

QUANTILES = {"median": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}
PARTS = ("prompt", "chosen", "rejected")
HEAD, TAIL = 24, 24  # tokens printed of each end of a text
LOSS_STYLE = "bold green"


@dataclass(frozen=True, slots=True)
class SplitReport:
    """The pairs of a split as they go into batches."""

    pairs: int
    prompts: int  # distinct ones
    left_out: int  # usable pairs beyond max_train_pairs or max_test_pairs
    dropped: dict[str, int]  # pairs dropped after they were read, by reason
    counts: TokenCounts
    lengths: dict[str, dict[str, int]]  # tokens by part and quantile, after truncation; each is one that occurs
    labels: dict[str, int] | None = None  # numbers of desirable and undesirable responses, where rows are unpaired

    @classmethod
    def of(cls, split: TokenizedSplit, later: LoadReport, left_out: int) -> SplitReport:
        """Report a tokenised split; ``later`` has its rejections after the rows were read."""
        levels = list(QUANTILES.values())
        lengths, present = split.pairs.lengths(), np.insert(split.pairs.present(), 0, True, axis=1)
        own = {part: lengths[present[:, i], i] for i, part in enumerate(PARTS) if present[:, i].any()}
        values = {p: np.quantile(n, levels, method="inverted_cdf").astype(int).tolist() for p, n in own.items()}
        return cls(
            pairs=len(split.pairs),
            prompts=len(set(split.sources.keys())),
            left_out=left_out,
            dropped=later.counts(),
            counts=split.counts,
            lengths={part: dict(zip(QUANTILES, counts, strict=True)) for part, counts in values.items()},
            labels=_count_labels(split.pairs) if split.pairs.is_unpaired else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``summary.json``."""
        own = {"pairs": self.pairs, "prompts": self.prompts, "left_out": self.left_out, "dropped": self.dropped}
        return {**own, **self.counts.as_dict(), "lengths": self.lengths, **(self.labels or {})}


@dataclass(frozen=True, slots=True)
class DataReport:
    """Everything that happened between the source's rows and the batches."""

    source: str
    loads: Sequence[LoadReport]  # one for each split that was read; only one where the test split was cut from it
    train: SplitReport
    test: SplitReport
    max_length: int
    max_prompt_length: int
    prompts: str  # plain text, or the chat template that renders them
    notes: Sequence[str] = ()  # on how the splits were put together

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``summary.json``."""
        names = ("source", "prompts", "max_length", "max_prompt_length")
        return {
            **{name: getattr(self, name) for name in names},
            "notes": list(self.notes),
            "read": [load.as_dict() for load in self.loads],
            "train": self.train.as_dict(),
            "test": self.test.as_dict(),
        }


def print_report(report: DataReport, console: Console) -> None:
    """Print formats, what was left out and truncated, and the lengths of the pairs."""
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
        what = counted(split.pairs, "pair")
        if split.labels is not None:
            kinds = ", ".join(f"{count:,} {label}" for label, count in split.labels.items())
            what = f"{counted(split.pairs, 'unpaired row')} ({kinds})"
        console.print(Text(f"{name}: {what} of {counted(split.prompts, 'prompt')}{_remarks(split)}"))


def _count_labels(rows: TokenizedPairs) -> dict[str, int]:
    return dict(zip(("desirable", "undesirable"), rows.present().sum(axis=0).tolist(), strict=True))


def _remarks(split: SplitReport) -> str:
    """List what happened to the pairs of a split, a line each; nothing for counts of 0."""
    counts = split.counts
    prompts, chosen, rejected = counts.prompts_truncated, counts.chosen_truncated, counts.rejected_truncated
    lines = {
        **{f"dropped: {count:,} {reason}": count for reason, count in split.dropped.items()},
        f"left out as a subset was asked for: {counted(split.left_out, 'pair')}": split.left_out,
        f"truncated: {counted(prompts, 'prompt')}, {chosen:,} chosen, {rejected:,} rejected": prompts
        + chosen
        + rejected,
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
    return "".join(f"\n  {line}" for line, count in lines.items() if count)


def print_preview(split: TokenizedSplit, tokenizer: PreTrainedTokenizerBase, count: int, console: Console) -> None:
    """Print the first ``count`` pairs of a split, each response token in brackets, long texts elided."""
    pairs = split.pairs[:count]
    if not pairs:
        return
    ends = trained_ends(tokenizer)
    heading = Text("Tokenised pairs: the prompt as text, tokens that bear the loss in ")
    console.print(heading.append("[brackets]", LOSS_STYLE))
    for pair in pairs:
        console.print(Text(f"pair {pair.index} ({pair.origin})", style="bold"))
        line = _line("prompt", pair.prompt_ids, "cut from the left" if pair.index in split.cut_prompts else "")
        _append(line, pair.prompt_ids, 0, tokenizer, bears_loss=False)
        console.print(line, soft_wrap=True)
        sides = {"chosen": pair.chosen_ids, "rejected": pair.rejected_ids}
        if pair.label is not None:
            sides = {"good": pair.chosen_ids} if pair.label else {"bad": pair.rejected_ids}
        for name, ids in sides.items():
            line = _line(name, ids, "cut from the right" if ids[-1] not in ends else "")
            # The last prompt token as context: alone, a text would lose its leading space in some tokenizers.
            _append(line, pair.prompt_ids[-1:] + ids, 1, tokenizer, bears_loss=True)
            console.print(line, soft_wrap=True)


def pieces(ids: Sequence[int], start: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the text that each token from ``start`` on adds to those before it.

    A token without readable text of its own (one byte of a longer character, a space that decoding swallows) is named
    as in the vocabulary. Control characters are escaped: data must not drive the terminal.
    """
    texts = []
    before = _decode(tokenizer, ids[:start])
    for place in range(start, len(ids)):
        text = _decode(tokenizer, ids[: place + 1])
        added = text[len(before) :] if text.startswith(before) else ""
        if not added or "\ufffd" in added:
            added = str(tokenizer.convert_ids_to_tokens(ids[place]))
        texts.append("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in added))
        before = text
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _line(name: str, ids: Sequence[int], note: str) -> Text:
    return Text.assemble((f"  {name:<8} ", "bold"), f"{len(ids)} tokens{', ' if note else ''}{note}: ")


def _append(
    line: Text, ids: Sequence[int], start: int, tokenizer: PreTrainedTokenizerBase, *, bears_loss: bool
) -> None:
    """Add the tokens from ``start`` on to ``line``, without the middle of a long text."""

    def add(texts: list[str]) -> None:
        line.append("".join(f"[{t}]" if bears_loss else t for t in texts), LOSS_STYLE if bears_loss else "dim")

    left_out = len(ids) - start - HEAD - TAIL
    if left_out <= 0:
        add(pieces(ids, start, tokenizer))
        return
    add(pieces(ids[: start + HEAD], start, tokenizer))
    line.append(f" ... {left_out} tokens ... ", "italic")
    add(pieces(ids[-TAIL - 1 :], 1, tokenizer))
