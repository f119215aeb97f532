"""Truncation of pairs that are too long, and its counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caldpo.data.data_report import TokenCounts
from caldpo.data.tokenize import truncate
from tests.data.small import chat, ids, pair, tokenized, word_tokenizer, zephyr
from tests.helpers.messages import names


def test_truncation_as_in_the_dpo_reference() -> None:
    """By hand: prompt 6, responses 3 and 5, limits 8 and 4: its last 4, and the first 4 of the responses."""
    limits = {"max_length": 8, "max_prompt_length": 4, "bos": None}
    prompt, chosen, rejected = truncate([1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14], **limits)
    assert (prompt, chosen, rejected) == ([3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13])
    # The prompt alone exceeds its limit, but the pair fits: nothing is cut.
    assert truncate([1, 2, 3, 4, 5, 6], [7], [8, 9], **limits) == ([1, 2, 3, 4, 5, 6], [7], [8, 9])
    # A short prompt leaves the responses all the room there is.
    assert truncate([1], [7] * 9, [8], **limits) == ([1], [7] * 7, [8])


def test_a_leading_bos_survives_the_cut() -> None:
    cut = truncate([0, 1, 2, 3, 4, 5], [7, 8, 9], [10], max_length=6, max_prompt_length=3, bos=0)
    assert cut == ([0, 4, 5], [7, 8, 9], [10])
    cut = truncate([9, 1, 2, 3, 4, 5], [7, 8, 9], [10], max_length=6, max_prompt_length=3, bos=0)
    assert cut[0] == [3, 4, 5]
    assert truncate([0, 1, 2], [7, 8], [9], max_length=2, max_prompt_length=1, bos=0) == ([0], [7], [9])


lengths = st.integers(1, 30)


@given(lengths, lengths, lengths, st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_truncation_invariants(p: int, c: int, r: int, limit: int, more: int, bos: bool) -> None:
    prompt, chosen, rejected = list(range(p)), list(range(100, 100 + c)), list(range(200, 200 + r))
    cut = truncate(prompt, chosen, rejected, max_length=limit + more, max_prompt_length=limit, bos=0 if bos else None)
    assert len(cut[0]) + max(len(cut[1]), len(cut[2])) <= max(limit + more, 0)
    assert all(cut)  # at least one token of each part
    assert cut[1] == chosen[: len(cut[1])]
    assert cut[2] == rejected[: len(cut[2])]
    assert cut[0] == prompt[p - len(cut[0]) :] or (bos and cut[0] == [0, *prompt[p - len(cut[0]) + 1 :]])


def test_truncated_pairs_are_counted_and_a_cut_response_has_no_eos() -> None:
    tokenizer = word_tokenizer()
    rows = [
        pair("a b c d e", " f", " g h i j"),  # 5 + 5: prompt to 3, rejected fits exactly, with its EOS
        pair("a b", " f g h i j k l", " m"),  # 2 + 8: chosen to 6
        pair("a b", " f g h i j k l", " f g h i j k m"),  # the same once truncated
        pair("a", " f", " g"),
    ]
    split = tokenized(rows, tokenizer, max_length=8, max_prompt_length=3)
    first, second, last = split.pairs
    assert first.prompt_ids == ids(tokenizer, "c d e")
    assert first.rejected_ids == ids(tokenizer, "g h i j <eos>")
    assert second.chosen_ids == ids(tokenizer, "f g h i j k")
    assert second.rejected_ids == ids(tokenizer, "m <eos>")
    assert split.counts == TokenCounts(prompts_truncated=1, chosen_truncated=2, rejected_truncated=1, identical=1)
    [rejection] = split.rejections
    assert rejection.kind == "degenerate"
    names(rejection.reason, "chosen", "rejected", "same tokens", "truncated")
    assert [p.index for p in (first, second, last)] == [0, 1, 2]
    assert split.sources == [rows[0], rows[1], rows[3]]
    assert split.cut_prompts == {0}


def test_very_long_texts_are_cut_and_keep_the_ends_that_matter() -> None:
    tokenizer = zephyr()
    question = "What is the capital of France?"
    rows = [
        pair(chat("Hi"), "word " * 40_000, "x" * 200_000),
        pair(chat("filler " * 9_000 + question), "Paris", "Lyon"),
    ]
    split = tokenized(rows, tokenizer, max_length=1024, max_prompt_length=512)
    long, asked = split.pairs
    assert len(long.prompt_ids) + len(long.chosen_ids) == len(long.prompt_ids) + len(long.rejected_ids) == 1024
    assert tokenizer.eos_token_id not in long.chosen_ids + long.rejected_ids
    assert len(asked.prompt_ids) == 512
    assert f"{question}</s>\n<|assistant|>\n" in tokenizer.decode(asked.prompt_ids)
    assert asked.chosen_ids == ids(tokenizer, "Par is </s>")
    assert split.counts == TokenCounts(prompts_truncated=1, chosen_truncated=1, rejected_truncated=1)
