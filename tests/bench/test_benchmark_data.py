"""The pairs of a benchmark: lengths as stated, ids within bounds, text that gives the same ids back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from caldpo.bench.benchmark_data import (
    CORRELATION,
    EOS,
    PROMPT_MEDIAN,
    RESPONSE_MEDIAN,
    SPECIAL,
    SPREAD,
    fold,
    padding_waste,
    pairs_of_file,
    save_pairs,
    synthetic_pairs,
    word_tokenizer,
)
from caldpo.data.load import load_pairs
from caldpo.data.pair import TokenizedPair
from caldpo.data.sources.local_files import LocalFiles
from caldpo.data.token_arrays import TokenizedPairs
from caldpo.data.tokenize import tokenize_pairs
from tests.helpers.messages import refused
from tests.helpers.shared import shared

LIMITS = {"max_length": 64, "max_prompt_length": 32}


def ids(pairs: TokenizedPairs) -> list[tuple[list[int], list[int], list[int]]]:
    return [(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in pairs]


def test_lengths_have_the_stated_distribution() -> None:
    pairs = synthetic_pairs(4000, vocab_size=50, max_length=10**6, max_prompt_length=10**5, seed=1)
    logs = np.log(pairs.lengths())
    assert np.exp(np.median(logs, axis=0)) == pytest.approx([PROMPT_MEDIAN, RESPONSE_MEDIAN, RESPONSE_MEDIAN], rel=0.05)
    assert logs.std(axis=0) == pytest.approx([SPREAD] * 3, rel=0.05)
    correlation = np.corrcoef(logs.T)
    assert correlation[1, 2] == pytest.approx(CORRELATION, abs=0.05)
    assert correlation[0, 1] == pytest.approx(0, abs=0.05)


def test_synthetic_pairs_keep_to_limits_and_vocabulary() -> None:
    pairs = synthetic_pairs(200, vocab_size=20, seed=0, **LIMITS)
    assert ids(pairs) == ids(synthetic_pairs(200, vocab_size=20, seed=0, **LIMITS))
    assert ids(pairs) != ids(synthetic_pairs(200, vocab_size=20, seed=1, **LIMITS))
    for prompt, *responses in ids(pairs):
        longest = len(prompt) + max(map(len, responses))
        assert longest <= 64
        for response in responses:
            assert (response[-1] == EOS) or len(prompt) + len(response) == 64  # a cut response does not end
            assert EOS not in response[:-1]
            assert all(len(SPECIAL) <= token < 20 for token in [*prompt, *response[:-1]])


def through_text(pairs: TokenizedPairs, vocab_size: int, folder: Path) -> TokenizedPairs:
    save_pairs(pairs, folder / "ids.jsonl", folder / "train.jsonl")
    loaded, report = load_pairs(LocalFiles(), str(folder / "train.jsonl"), on_degenerate="keep")
    assert report.rejections == []
    return tokenize_pairs(
        loaded, word_tokenizer(vocab_size), on_degenerate="keep", console=Console(quiet=True), **LIMITS
    ).pairs


def test_the_text_of_pairs_tokenises_back_to_their_ids(tmp_path: Path) -> None:
    """Through the loading and tokenising of a training run, truncated responses and prompts included."""
    pairs = synthetic_pairs(300, vocab_size=90, seed=2, **LIMITS)
    lengths = pairs.lengths()
    assert ((lengths[:, :1] + lengths[:, 1:]) == 64).sum() > 50, "this case needs responses that are cut"
    assert (lengths[:, 0] == 32).sum() > 50, "and prompts that are cut"
    assert ids(through_text(pairs, 90, tmp_path)) == ids(pairs)
    rows = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text().splitlines()]
    assert [tuple(row[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")) for row in rows] == ids(pairs)


def test_folding_keeps_lengths_and_ends() -> None:
    eos = 7  # in the other vocabulary
    pair = TokenizedPair([1, 0, 9, 7, 500], [4, 999, eos], [6, 12, 5000], None, None, 0, "")
    (prompt, chosen, rejected) = ids(fold([pair], vocab_size=10, eos=eos))[0]
    assert prompt == [3 + 1, 3 + 0, 9, 7, 3 + 500 % 7]
    assert chosen == [4, 3 + 999 % 7, EOS]
    assert rejected == [6, 3 + 12 % 7, 3 + 5000 % 7]


def test_real_pairs_keep_their_lengths(tmp_path: Path) -> None:
    path, tokenizer = shared("data/test_prefs.jsonl.gz"), shared("tokenizers/zephyr")
    pairs = pairs_of_file(str(path), str(tokenizer), 40, vocab_size=8192, seed=0, folder=tmp_path, **LIMITS)
    assert len(pairs) == 40
    assert ids(through_text(pairs, 8192, tmp_path)) == ids(pairs)
    with refused("600", "1,000,000", key="data_file", value=path, remedy=("steps", "micro_batch_size")):
        pairs_of_file(str(path), str(tokenizer), 10**6, vocab_size=8192, seed=0, folder=tmp_path, **LIMITS)


def test_waste_of_padding_and_of_repeated_prompts() -> None:
    """Two batches of one pair: rows of 5 and 3 padded to 5, rows of 4 and 4; prompts of 2 and 3 stand twice."""
    padding, repetition = padding_waste(np.array([[2, 3, 1], [3, 1, 1]]), 1)
    assert padding == pytest.approx((10 + 8) / (8 + 8))
    assert repetition == pytest.approx(16 / (6 + 5))
