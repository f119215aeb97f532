"""Storage of tokenised pairs and their stacking into batches."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caldpo.data.collate import PairBatches, collate
from caldpo.data.pair import TokenizedPair
from caldpo.data.sampler import MicroBatch
from caldpo.data.tokens import TokenizedPairs

EOS = 2
FIRST = TokenizedPair([5, 6], [7, EOS], [8, 9, EOS], 0.75, 0.25, 0, "f:1")
SECOND = TokenizedPair([EOS], [7, 8, 9, EOS], [EOS], 1.0, -1.0, 1, "f:2")


def test_rows_masks_and_scores_by_hand() -> None:
    batch = collate([FIRST, SECOND], pad_id=EOS)  # padding looks like EOS, as with Zephyr
    p = EOS
    assert batch.input_ids.tolist() == [[5, 6, 7, 2, p], [2, 7, 8, 9, 2], [5, 6, 8, 9, 2], [2, 2, p, p, p]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 1, 0], [1] * 5, [1] * 5, [1, 1, 0, 0, 0]]
    assert batch.response_mask.int().tolist() == [
        [0, 0, 1, 1, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 1, 0, 0, 0],
    ]
    assert batch.weight.tolist() == [1.0, 1.0]
    assert batch.index.tolist() == [0, 1]
    assert batch.score_chosen.tolist() == [0.75, 1.0]
    assert batch.score_rejected.tolist() == [0.25, -1.0]
    assert batch.step_pairs == 2
    assert batch.pairs == 2


@given(
    st.lists(st.tuples(*[st.lists(st.integers(0, 9), min_size=1, max_size=6)] * 3), min_size=1, max_size=5),
    st.integers(0, 9),
)
def test_the_pad_id_decides_nothing(texts: list[tuple[list[int], list[int], list[int]]], pad_id: int) -> None:
    """Every row is read back from its masks, whatever tokens it has."""
    pairs = [TokenizedPair(p, c, r, None, None, i, "") for i, (p, c, r) in enumerate(texts)]
    batch = collate(pairs, pad_id)
    for row, (pair, ids) in enumerate([(p, p.chosen_ids) for p in pairs] + [(p, p.rejected_ids) for p in pairs]):
        assert batch.input_ids[row][batch.attention_mask[row]].tolist() == pair.prompt_ids + ids
        assert batch.input_ids[row][batch.response_mask[row]].tolist() == ids
        assert batch.input_ids[row][~batch.attention_mask[row]].eq(pad_id).all()
    assert batch.score_chosen is None
    assert batch.attention_mask.any(0).all()  # no column of padding alone


def test_scores_are_all_or_none() -> None:
    half = dataclasses.replace(SECOND, score_rejected=None)
    assert collate([FIRST, half], 0).score_chosen is None
    # Within a split the answer is the split's, not the batch's: batches must not differ in what they carry.
    split = TokenizedPairs([FIRST, half])
    assert not split.has_scores
    assert PairBatches(split, 0)[MicroBatch((0,), (1.0,), 1)].score_chosen is None
    assert TokenizedPairs([FIRST, SECOND]).has_scores


def test_a_batch_is_what_the_sampler_names() -> None:
    batch = PairBatches(TokenizedPairs([FIRST, SECOND]), 0)[MicroBatch((1, 0, 1), (1.0, 1.0, 0.0), 7)]
    assert batch.index.tolist() == [1, 0, 1]
    assert batch.weight.tolist() == [1.0, 1.0, 0.0]
    assert batch.step_pairs == 7


def test_a_batch_survives_the_way_from_a_worker() -> None:
    batch = collate([FIRST, SECOND], 0)
    copy = pickle.loads(pickle.dumps(batch))
    assert torch.equal(copy.input_ids, batch.input_ids)
    assert copy.step_pairs == 2


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
    with pytest.raises(ValueError, match="f:2 has index 1 at place 0"):
        TokenizedPairs([SECOND])
    assert list(TokenizedPairs()) == []
    assert not TokenizedPairs().has_scores
