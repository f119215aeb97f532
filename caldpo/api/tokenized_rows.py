"""Rows of any format as tokenised pairs, every row of them: for log-ratios, and for a training loop of one's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from caldpo.api.given_model import Tokenizer, read_tokenizer
from caldpo.api.given_pairs import PAIRS, Pairs, as_files
from caldpo.config.signatures import validated
from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from caldpo.data.data_report import Rejection
    from caldpo.data.pair import PreferencePair, TokenizedPair

_SHOWN = 10  # bad rows in an error


@validated
def tokenize(
    pairs: Pairs,
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
) -> list[TokenizedPair]:
    """Tokenise preference pairs as a run does, for :func:`caldpo.collate` and a ``DataLoader``.

    Args:
        pairs: files, or rows in memory.
        tokenizer: with an end token, or its folder or id; its chat template renders conversations.
        max_length: tokens of a prompt and its longer response; a longer pair is truncated. None truncates nothing.
        max_prompt_length: tokens left of the prompt of a pair that is too long; None: half of ``max_length``.

    Returns:
        A pair for each row, in order: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, the responses with their end
        token, and the scores, if the rows have any.

    Raises:
        CaldpoError: naming every row that is no pair, up to ten.
    """
    return tokenized_rows(pairs, read_tokenizer(tokenizer), max_length, max_prompt_length)[0]


def tokenized_rows(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, max_length: int | None, max_prompt_length: int | None
) -> tuple[list[TokenizedPair], list[PreferencePair]]:
    """Tokenise as :func:`tokenize`; return the pairs as text as well, in the same order."""
    from rich.console import Console

    from caldpo.data.load import load_pairs
    from caldpo.data.pair_checks import DegeneracyCheck
    from caldpo.data.sources.local_files import LocalFiles
    from caldpo.data.stored_pairs import PairWriter
    from caldpo.data.tokenize import tokenize_pairs
    from caldpo.utils.notes import print_notes

    longest = sys.maxsize if max_length is None else max_length
    prompt_room = longest // 2 if max_prompt_length is None else max_prompt_length
    if longest < 2 or not 0 < prompt_room < longest:
        raise CaldpoError(
            f"leaves no room for a response in max_length={max_length}",
            key="max_prompt_length",
            value=max_prompt_length,
            remedy="give a smaller one, or a larger max_length",
        )
    source, writer = LocalFiles(), PairWriter()
    bad: list[Rejection] = []
    seen = DegeneracyCheck(find_repeats=False)  # every row is wanted, also twice
    with TemporaryDirectory(prefix="caldpo-pairs-") as folder:
        files = as_files(pairs, Path(folder), "pairs")
        given = partial(_given_rows, folder)
        try:
            for file in [files] if isinstance(files, str) else files:
                _, report = load_pairs(
                    source, file, on_degenerate="keep", on_reversed_scores="keep", degenerate=seen, writer=writer
                )
                bad += report.rejections
            stored = writer.pairs()
            split = tokenize_pairs(
                stored,
                tokenizer,
                max_length=longest,
                max_prompt_length=prompt_room,
                on_degenerate="keep",
                console=Console(quiet=True),
            )
        except CaldpoError as error:
            key = error.key and given(error.key)
            raise CaldpoError(given(error.message), key=key, value=error.value, remedy=error.remedy) from error
    rows = len(stored) + len(bad)
    _require_all([replace(row, origin=given(row.origin)) for row in (*bad, *split.rejections)], rows)
    counts = split.counts
    if cut := counts.prompts_truncated + counts.chosen_truncated + counts.rejected_truncated:
        print_notes([f"max_length={max_length}: {cut:,} prompts and responses of {3 * len(stored):,} are truncated"])
    tokens = [replace(pair, origin=given(pair.origin)) for pair in split.pairs]
    return tokens, [replace(pair, origin=given(pair.origin)) for pair in split.sources]


def _given_rows(folder: str, text: str) -> str:
    """Name rows in memory by their number, ``pairs[3]``, where a text names the file below ``folder`` with them."""
    file = rf"{re.escape(folder)}/{PAIRS}/\w+\.(?:jsonl|parquet)"  # whose lines count from 1, and rows from 0
    return re.sub(rf"{file}(?::(\d+))?", lambda place: f"pairs[{int(place[1]) - 1}]" if place[1] else "pairs", text)


def _require_all(bad: Sequence[Rejection], rows: int) -> None:
    if not bad:
        return
    lines = [f"{len(bad):,} of {rows:,} rows cannot be used", *(f"  {r.origin}: {r.reason}" for r in bad[:_SHOWN])]
    if len(bad) > _SHOWN:
        lines.append(f"  ... and {len(bad) - _SHOWN:,} more")
    raise CaldpoError("\n".join(lines), key="pairs", remedy="mend or remove these rows")
