"""Rows with one response: taken by losses that compare nothing, refused by the others, tokenised as pairs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caldpo.data.datamodule import PairDataModule
from caldpo.data.pair import PreferencePair
from caldpo.data.raw_row import PairSource, RawRow
from caldpo.data.sources.review_texts import ReviewTexts
from tests.data.prepared import rejected, settings
from tests.data.small import TEMPLATE, word_tokenizer
from tests.helpers.messages import names, refused
from tests.helpers.tiny import tiny_tokenizer

EOS = 2


class Rows(PairSource):
    """The given rows as they are, under every split's name."""

    name = "rows"

    def __init__(self, **splits: list[dict[str, Any]]) -> None:
        self.splits = splits

    def rows(self, split: str) -> Any:
        return (RawRow(f"{split}[{i}]", row) for i, row in enumerate(self.splits[split]))


def demonstrations(words: str) -> list[dict[str, Any]]:
    return [{"prompt": f"a {w} ?", "completion": f" yes {w}"} for w in words]


def chats(words: str) -> list[dict[str, Any]]:
    turns = ("user", "assistant")
    return [
        {"messages": [{"role": r, "content": t} for r, t in zip(turns, (w, f"yes {w}"), strict=True)]} for w in words
    ]


def module(tmp_path: Path, needs_rejected: bool, rows: Rows, **changes: Any) -> PairDataModule:
    made = PairDataModule(**settings(source=rows, **changes))
    made.prepare_pairs(word_tokenizer(), tmp_path, False, "sft", needs_rejected=needs_rejected)
    return made


@pytest.mark.parametrize("make", [demonstrations, chats])
def test_the_missing_response_is_an_eos_alone(tmp_path: Path, make: Any) -> None:
    data = module(tmp_path, False, Rows(train=make("bcde"), test=make("fg")))
    tokenizer = word_tokenizer()
    for pair, word in zip(data.train_pairs, "bcde", strict=True):
        assert pair.rejected_ids == [EOS]
        assert pair.chosen_ids == [*tokenizer(f"yes {word}")["input_ids"], EOS]
        text = f"a {word} ?" if make is demonstrations else f"user : {word} <eos> z assistant :"
        assert pair.prompt_ids == tokenizer(text)["input_ids"]
    assert TEMPLATE.count("eos_token") == 1
    assert all(pair.demonstration for pair in data.test_sources)


def test_counts_exclude_missing_responses(tmp_path: Path) -> None:
    made = PairDataModule(**settings(source=Rows(train=chats("bcde"), test=chats("fg"))))
    report = made.prepare_pairs(word_tokenizer(), tmp_path, False, "sft", needs_rejected=False)
    assert report.train.counts.eos_appended == 0
    assert report.train.counts.boundary_merges == 0


def test_a_loss_that_compares_refuses_them_row_by_row(tmp_path: Path) -> None:
    pairs = [{"prompt": f"a {w} ?", "chosen": f" yes {w}", "rejected": " no"} for w in "hijk"]
    rows = Rows(train=[*pairs, *demonstrations("bc")], test=[{"prompt": "z ?", "chosen": " yes", "rejected": " no"}])
    with refused("2 of 7 rows", "train[4]", "train[5]", key="data.on_invalid", remedy="data.on_invalid=skip") as caught:
        module(tmp_path, True, rows)
    names(caught, "rejected response", "loss", tmp_path / "rejected_rows.jsonl")
    data = module(tmp_path, True, rows, on_invalid="skip")
    assert len(data.train_pairs) == 4
    assert [row["origin"] for row in rejected(tmp_path)] == ["train[4]", "train[5]"]
    assert len(module(tmp_path, False, rows).train_pairs) == 6  # pairs can be imitated as well


def test_an_empty_rejected_response_is_still_a_fault(tmp_path: Path) -> None:
    blank = [{"prompt": "a ?", "chosen": " yes", "rejected": ""}]
    with refused("1 of 4 rows", "train[0]", "rejected response", "text", key="data.on_invalid"):
        module(tmp_path, False, Rows(train=[*blank, *demonstrations("bc")], test=demonstrations("d")))
    assert not PreferencePair("a", "b", "").demonstration


def test_a_review_is_cut_after_its_first_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt and rest make the text; lengths are between the bounds, drawn by the seed, and differ."""
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("tokenizer")
    texts = [" ".join(f"w{(i + j) % 30}" for j in range(12)) for i in range(20)]
    source = ReviewTexts("reviews", tokenizer="tokenizer", min_prompt_tokens=2, max_prompt_tokens=4)

    class Loaded(list[dict[str, str]]):
        column_names = ("text", "label")

        def __getitem__(self, name: Any) -> Any:
            return texts

    monkeypatch.setattr(source.texts, "load", lambda split: Loaded())
    rows = [row.value for row in source.rows("train")]
    assert [row["prompt"] + row["completion"] for row in rows] == texts  # type: ignore[index]
    lengths = [len(row["prompt"].split()) for row in rows]  # type: ignore[index]
    assert set(lengths) == {2, 3, 4}
    assert [row.value for row in source.rows("train")] == rows
    assert next(iter(source.rows("train"))).origin == "train[0]"


def test_bounds_of_a_prompt() -> None:
    with refused("max_prompt_tokens=3", key="data.source.min_prompt_tokens", value=4):
        ReviewTexts("reviews", tokenizer="t", min_prompt_tokens=4, max_prompt_tokens=3)
