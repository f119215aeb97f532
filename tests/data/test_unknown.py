"""Tokens outside the vocabulary: counted, reported, and too many of them refused before a model loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from caldpo.data.data_report import TokenCounts
from caldpo.data.tokenize import unknown_token
from caldpo.environments.reviews.review_environment import Reviews
from caldpo.environments.sft_policy import build_tokenizer
from tests.data.prepared import TEST, TRAIN, prepared
from tests.data.small import RowsSource, gpt2, word_tokenizer
from tests.helpers.messages import names, refused

OTHER = [(f"Ask {w} ?", f" strange {w}", f" odd {w}") for w in "bcdefghijk"]


def test_the_embedded_vocabulary_is_not_that_of_other_texts(tmp_path: Path) -> None:
    source = RowsSource(train=OTHER, test=TEST)
    tokenizer, remedy = (
        build_tokenizer(Reviews()),
        ("model.path=ID_OR_FOLDER", "data.max_unknown=0.70"),
    )
    with refused("70.0%", "train", "<unk>", len(tokenizer), key="model", remedy=remedy):
        prepared(tmp_path, tokenizer, source=source, max_unknown=0.01)


def test_a_few_unknown_tokens_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*TRAIN, ("a é ?", " yes", " no")]
    _, report = prepared(tmp_path, source=RowsSource(train=rows, test=TEST), max_unknown=0.05)
    expected = 1 / sum(sum(len(text.split()) for text in row) + 2 for row in rows)  # an EOS for each response
    assert report["train"]["unknown"] == pytest.approx(expected, abs=1e-12)
    assert report["test"]["unknown"] == 0
    names(capsys.readouterr().out, "vocabulary", f"{expected:.2%}")


def test_which_token_is_the_unknown_one() -> None:
    assert unknown_token(word_tokenizer()) == 0
    assert unknown_token(gpt2()) is None, "its end token is its unknown one, too"
    assert TokenCounts().unknown_share == 0
