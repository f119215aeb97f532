"""The rows of a step divided into micro-batches: budgets, balance, padding saved."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldpo.data.batching import ByCount, ByTokens
from caldpo.estimation.run_flops import computed_tokens

LAYOUTS = ("packed", "padded")
COST = {layout: partial(computed_tokens, layout=layout) for layout in LAYOUTS}
LENGTHS = st.lists(st.tuples(*[st.integers(1, 60)] * 3), min_size=1, max_size=25).map(np.array)


def by_tokens(lengths: np.ndarray, budget: int, layout: str) -> ByTokens:
    return ByTokens(budget, lengths.sum(axis=1), lengths[:, 0] + lengths[:, 1:].max(axis=1), layout)  # type: ignore[arg-type]


def alone(*longest: int) -> np.ndarray:
    """Pairs whose prompt has one token and whose responses are as long as each other."""
    return np.array([[1, n - 1, n - 1] for n in longest])


class TestByCount:
    def test_in_order_sizes_differ_by_one(self) -> None:
        assert ByCount().split([9, 8, 7, 6, 5, 4, 3], 3) == [[9, 8], [7, 6], [5, 4, 3]]

    def test_more_micro_batches_than_rows(self) -> None:
        assert ByCount().split([4, 2], 4) == [[], [4], [], [2]]

    def test_similar_lengths_share_a_micro_batch(self) -> None:
        batching = ByCount(np.array([3, 50, 4, 48, 5, 49]))
        assert batching.split([0, 1, 2, 3, 4, 5], 3) == [[1, 5], [3, 4], [2, 0]]

    def test_padding_by_hand(self) -> None:
        """In order every micro-batch is as long as a long pair; sorted, one of three is."""
        lengths = alone(100, 10, 100, 10, 10, 10)
        plain, sorted_ = (d.split(range(6), 3) for d in (ByCount(), ByCount(lengths[:, 0] + lengths[:, 1])))
        assert sum(COST["padded"](lengths[batch]) for batch in plain) == 2 * (200 + 200 + 20)
        assert sum(COST["padded"](lengths[batch]) for batch in sorted_) == 2 * (200 + 20 + 20)

    @given(LENGTHS, st.integers(1, 8))
    def test_grouping_by_length_never_pads_more(self, lengths: np.ndarray, batches: int) -> None:
        """Where all micro-batches are as large: the longest ones then stand together."""
        whole = len(lengths) // batches * batches
        rows, longest = range(whole), lengths[:, 0] + lengths[:, 1:].max(axis=1)
        plain, grouped = (
            sum(COST["padded"](lengths[batch]) for batch in batching.split(rows, batches) if batch)
            for batching in (ByCount(), ByCount(longest))
        )
        assert grouped <= plain


class TestByTokens:
    def test_packed_by_hand(self) -> None:
        """Longest first, each to the emptiest: of 8, 7, 6, 5 and 4 tokens two micro-batches get 17 and 13."""
        lengths = np.array([[2, 3, 3], [1, 3, 3], [2, 2, 2], [1, 2, 2], [2, 1, 1]])
        batching = by_tokens(lengths, 17, "packed")
        assert batching.needed(range(5)) == 2
        assert batching.split([4, 3, 2, 1, 0], 2) == [[0, 3, 4], [1, 2]]
        tighter = by_tokens(lengths, 16, "packed")
        assert tighter.needed(range(5)) == 3
        assert tighter.split(range(5), 3) == [[1, 4], [2, 3], [0]]  # 11, 11 and 8

    def test_padded_by_hand(self) -> None:
        """Under 48: two pairs of 12, or four of 6, are a full micro-batch; one of 30 is too much and stands alone."""
        batching = by_tokens(alone(6, 12, 6, 30, 12, 6, 5), 48, "padded")
        assert batching.needed(range(7)) == 3
        assert batching.split(range(7), 3) == [[3], [1, 4], [0, 2, 5, 6]]
        assert [batching.tokens(batch) for batch in batching.split(range(7), 3)] == [60, 48, 48]

    def test_more_micro_batches_than_rows(self) -> None:
        for layout in LAYOUTS:
            dealt = by_tokens(alone(6, 9), 100, layout).split([0, 1], 5)
            assert dealt == [[1], [0], [], [], []]

    def test_a_pair_above_the_budget_is_alone_and_costs_one(self) -> None:
        lengths = alone(500, 4, 4, 4)
        for layout in LAYOUTS:
            batching = by_tokens(lengths, 24, layout)
            assert batching.needed(range(4)) == 2
            assert batching.split(range(4), 2) == [[0], [1, 2, 3]]

    @pytest.mark.parametrize("layout", LAYOUTS)
    @given(LENGTHS, st.integers(1, 600), st.integers(0, 5), st.randoms())
    def test_budgets_are_kept_and_no_row_is_lost(
        self, layout: str, lengths: np.ndarray, budget: int, more: int, random
    ) -> None:
        batching = by_tokens(lengths, budget, layout)
        rows = list(range(len(lengths)))
        random.shuffle(rows)
        batches = batching.needed(rows) + more
        dealt = batching.split(rows, batches)
        assert len(dealt) == batches
        assert sorted(itertools.chain(*dealt)) == sorted(rows)
        costs = [COST[layout](lengths[batch]) if batch else 0 for batch in dealt]
        assert costs == [batching.tokens(batch) for batch in dealt]
        assert all(cost <= budget or len(batch) == 1 for cost, batch in zip(costs, dealt, strict=True))
        assert costs == sorted(costs, reverse=True)
        assert len([batch for batch in dealt if batch]) == min(batches, len(rows))  # none stays empty without need
        assert batching.split(sorted(rows), batches) == dealt  # the rows decide, not the order they came in

    @given(LENGTHS.filter(lambda lengths: len(lengths) <= 8), st.integers(1, 600))
    def test_padded_micro_batches_are_as_few_as_possible(self, lengths: np.ndarray, budget: int) -> None:
        """Against all ways to cut the sorted rows, tried one by one."""
        longest = -np.sort(-(lengths[:, 0] + lengths[:, 1:].max(axis=1)))
        places = range(1, len(longest))
        ways = (cuts for count in range(len(longest)) for cuts in itertools.combinations(places, count))
        best = next(
            len(cuts) + 1
            for cuts in ways
            if all(
                end - start == 1 or 2 * (end - start) * longest[start] <= budget
                for start, end in itertools.pairwise([0, *cuts, len(longest)])
            )
        )
        assert by_tokens(lengths, budget, "padded").needed(range(len(lengths))) == best

    @given(LENGTHS, st.integers(1, 8))
    def test_packed_micro_batches_differ_by_one_pair_at_most(self, lengths: np.ndarray, batches: int) -> None:
        batching = by_tokens(lengths, 10_000, "packed")
        loads = [batching.tokens(batch) for batch in batching.split(range(len(lengths)), batches)]
        assert max(loads) - min(loads) <= lengths.sum(axis=1).max()
