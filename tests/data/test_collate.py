"""Tokenised pairs put together into batches, padded and packed."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caldpo.data.batching import MicroBatch
from caldpo.data.collate import Layout, collate
from caldpo.data.data_loading import PairBatches
from caldpo.data.pair import TokenizedPair
from caldpo.data.token_arrays import TokenizedPairs
from tests.helpers.messages import refused

EOS = 2
FIRST = TokenizedPair([5, 6], [7, EOS], [8, 9, EOS], 0.75, 0.25, 0, "f:1")
SECOND = TokenizedPair([EOS], [7, 8, 9, EOS], [EOS], 1.0, -1.0, 1, "f:2")

TEXTS = st.lists(st.tuples(*[st.lists(st.integers(0, 9), min_size=1, max_size=6)] * 3), min_size=1, max_size=5)
LAYOUTS: tuple[Layout, ...] = ("padded", "packed")


def pairs_of(texts: list[tuple[list[int], list[int], list[int]]]) -> list[TokenizedPair]:
    return [TokenizedPair(p, c, r, None, None, i, "") for i, (p, c, r) in enumerate(texts)]


def test_a_padded_batch_by_hand() -> None:
    """Rows of 5: chosen of both pairs, then rejected of both; padding looks like EOS, as with Zephyr."""
    batch = collate([FIRST, SECOND], pad_id=EOS)
    p = EOS
    assert batch.input_ids.tolist() == [[5, 6, 7, 2, p], [2, 7, 8, 9, 2], [5, 6, 8, 9, 2], [2, 2, p, p, p]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 1, 0], [1] * 5, [1] * 5, [1, 1, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 4
    assert batch.targets.tolist() == [7, 2, 8, 9, 2, 7, 8, 9, 2, 2]
    assert batch.response.tolist() == [0, 0, 2, 2, 2, 1, 1, 1, 1, 3]
    assert batch.predicts.tolist() == [1, 2, 11, 12, 13, 5, 6, 7, 8, 15]
    assert batch.spans is None
    assert batch.model_inputs()["attention_mask"].tolist() == batch.attention_mask.long().tolist()


def test_a_packed_batch_by_hand() -> None:
    """One row of prompt, chosen, rejected; what follows the prompt in either response has the same positions."""
    batch = collate([FIRST, SECOND], pad_id=EOS, layout="packed")
    assert batch.input_ids.tolist() == [[5, 6, 7, 2, 8, 9, 2, 2, 7, 8, 9, 2, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0, 1, 2, 3, 4, 1]]
    assert batch.attention_mask.tolist() == [[True] * 13]
    assert batch.targets.tolist() == [7, 2, 8, 9, 2, 7, 8, 9, 2, 2]
    assert batch.response.tolist() == [0, 0, 2, 2, 2, 1, 1, 1, 1, 3]
    # the prompts' last tokens, at 1 and 7, predict the first token of both their responses
    assert batch.predicts.tolist() == [1, 2, 1, 4, 5, 7, 8, 9, 10, 7]
    assert batch.spans == ((2, 2, 3), (1, 4, 1))
    assert batch.model_inputs()["spans"] == batch.spans


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fields_that_both_layouts_share(layout: Layout) -> None:
    batch = collate([FIRST, SECOND], pad_id=EOS, layout=layout, split="train")
    assert batch.response_lengths.tolist() == [2, 4, 3, 1]
    assert [lengths.tolist() for lengths in batch.lengths()] == [[2.0, 4.0], [3.0, 1.0]]
    assert batch.pair_tokens == (5, 5)
    assert batch.weight.tolist() == [1.0, 1.0]
    assert batch.index.tolist() == [0, 1]
    assert batch.score_chosen.tolist() == [0.75, 1.0]
    assert batch.score_rejected.tolist() == [0.25, -1.0]
    assert (batch.step_pairs, batch.pairs, batch.split) == (None, 2, "train")
    assert [batch.pairs_in_step(micro_batches) for micro_batches in (1, 4)] == [2, 8]


@given(TEXTS, st.integers(0, 9))
def test_every_target_is_predicted_by_the_token_before_it(
    texts: list[tuple[list[int], list[int], list[int]]], pad_id: int
) -> None:
    """In either layout, whatever tokens the padding looks like: read back from prompt + response."""
    pairs = pairs_of(texts)
    expected = [
        (side * len(pairs) + pair.index, place - 1, whole[place - 1], whole[place])  # response, position, token, target
        for pair in pairs
        for side, ids in enumerate((pair.chosen_ids, pair.rejected_ids))
        for whole in [pair.prompt_ids + ids]
        for place in range(len(pair.prompt_ids), len(whole))
    ]
    for layout in LAYOUTS:
        batch = collate(pairs, pad_id, layout=layout)
        at = [x.flatten()[batch.predicts] for x in (batch.position_ids, batch.input_ids)]
        found = zip(*(x.tolist() for x in (batch.response, *at, batch.targets)), strict=True)
        assert list(found) == expected
        assert batch.attention_mask.flatten()[batch.predicts].all()
        assert batch.response_lengths.tolist() == batch.response.bincount(minlength=2 * len(pairs)).tolist()
        assert batch.pair_tokens == tuple(len(c) + len(r) for _, c, r in texts)


@given(TEXTS, st.integers(0, 9))
def test_rows_are_read_back_by_their_masks(texts: list[tuple[list[int], list[int], list[int]]], pad_id: int) -> None:
    pairs = pairs_of(texts)
    batch = collate(pairs, pad_id)
    for row, whole in enumerate([p + c for p, c, _ in texts] + [p + r for p, _, r in texts]):
        assert batch.input_ids[row][batch.attention_mask[row]].tolist() == whole
        assert batch.input_ids[row][~batch.attention_mask[row]].eq(pad_id).all()
    assert batch.score_chosen is None
    assert batch.attention_mask.any(0).all()  # no column of padding alone


@given(TEXTS)
def test_a_packed_row_holds_every_token_once(texts: list[tuple[list[int], list[int], list[int]]]) -> None:
    """By its spans each sequence is read back, with positions that count on from its prompt."""
    batch = collate(pairs_of(texts), 0, layout="packed")
    ids, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    assert len(ids) == sum(len(part) for text in texts for part in text)
    start = 0
    for (prompt, chosen, rejected), (p, c, r) in zip(texts, batch.spans, strict=True):
        assert (p, c, r) == (len(prompt), len(chosen), len(rejected))
        first = slice(start, start + p + c)
        assert ids[first] == prompt + chosen
        assert positions[first] == list(range(p + c))
        second = slice(start + p + c, start + p + c + r)
        assert ids[second] == rejected
        assert positions[second] == list(range(p, p + r))
        start = second.stop


def test_scores_are_all_or_none() -> None:
    half = dataclasses.replace(SECOND, score_rejected=None)
    assert collate([FIRST, half], 0).score_chosen is None
    # Within a split the answer is the split's, not the batch's: batches must not differ in what they carry.
    split = TokenizedPairs([FIRST, half])
    assert not split.has_scores
    assert PairBatches(split, 0)[MicroBatch((0,), (1.0,), 1)].score_chosen is None
    assert TokenizedPairs([FIRST, SECOND]).has_scores


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_has_the_rows_of_the_sampler(layout: Layout) -> None:
    batches = PairBatches(TokenizedPairs([FIRST, SECOND]), 0, layout, "test")
    batch = batches[MicroBatch((1, 0, 1), (1.0, 1.0, 0.0), 7)]
    assert batch.index.tolist() == [1, 0, 1]
    assert batch.weight.tolist() == [1.0, 1.0, 0.0]
    assert (batch.step_pairs, batch.split) == (7, "test")
    assert (batch.spans is None) == (layout == "padded")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_survives_pickling_from_a_worker(layout: Layout) -> None:
    batch = collate([FIRST, SECOND], 0, layout=layout)
    copy = pickle.loads(pickle.dumps(batch))
    for name, value in vars(batch).items():
        same = torch.equal(getattr(copy, name), value) if isinstance(value, torch.Tensor) else None
        assert same or getattr(copy, name) == value, name


def test_pairs_come_out_of_storage_as_they_went_in() -> None:
    pairs = [FIRST, SECOND, TokenizedPair([70_000], [1], [], None, None, 2, "f:3")]
    stored = TokenizedPairs(iter(pairs))
    assert list(stored) == pairs
    assert len(stored) == 3
    assert stored[-1] == pairs[2]
    assert stored[:2] == pairs[:2]
    assert stored.lengths().tolist() == [[2, 2, 3], [1, 4, 1], [1, 1, 0]]
    assert stored.origin(1) == "f:2"
    with pytest.raises(IndexError):
        stored[3]
    with refused("f:2", "index 1", "0", kind=ValueError):
        TokenizedPairs([SECOND])
    assert list(TokenizedPairs()) == []
    assert not TokenizedPairs().has_scores
