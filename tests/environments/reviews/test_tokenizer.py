"""One token a word, and text that comes back from its tokens to the last space."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from caldpo.data.special_text import SpecialText, encode_continuation
from caldpo.environments.pair_sampling import PairRecipe, sample_pairs
from caldpo.environments.reviews.review_environment import Reviews
from caldpo.environments.reviews.vocabulary import WORDS
from caldpo.environments.sft_policy import build_tokenizer

ROWS = list(sample_pairs(PairRecipe("reviews", seed=3, sharpness=1.0), "train", 300))


def test_every_word_is_one_known_token() -> None:
    tokenizer = build_tokenizer(Reviews())
    assert len(tokenizer) == len(WORDS) + 4
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        0,
        1,
        2,
        3,
    )
    for row in ROWS:
        ids = tokenizer(row["prompt"])["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) == 1 + len(str(row["prompt"]).split())
        assert tokenizer.unk_token_id not in ids


def test_text_survives_the_round_trip_whole_and_apart() -> None:
    tokenizer = build_tokenizer(Reviews())
    for row in ROWS:
        prompt, chosen = str(row["prompt"]), str(row["chosen"])
        whole = tokenizer(prompt + chosen)["input_ids"]
        head, tail = tokenizer(prompt)["input_ids"], tokenizer(chosen, add_special_tokens=False)["input_ids"]
        assert whole == head + tail == head + encode_continuation(SpecialText(tokenizer).encode_all, chosen)
        assert tokenizer.decode(whole, skip_special_tokens=True) == prompt + chosen
        assert tokenizer.decode(tail) == chosen
        assert len(whole) < Reviews.max_length


def test_special_tokens_are_recognised_and_skipped() -> None:
    tokenizer = build_tokenizer(Reviews())
    ids = tokenizer(" the plot</s>", add_special_tokens=False)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == " the plot"


def test_unknown_words_become_the_unknown_token() -> None:
    tokenizer = build_tokenizer(Reviews())
    ids = tokenizer(" the weather plot", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁the", "<unk>", "▁plot"]


def test_a_saved_folder_loads_as_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(Reviews())
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = str(ROWS[0]["prompt"]) + str(ROWS[0]["chosen"])
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text
    assert loaded.chat_template is None
