"""The tokenised pairs of a split in flat arrays.

Python lists take about 36 bytes a token (2 GB for the 61,135 pairs of UltraFeedback), and every data-loading
worker copies them as it counts references. Flat arrays take 4 bytes and are shared.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from caldpo.data.pair import TokenizedPair


class TokenizedPairs(Sequence[TokenizedPair]):
    """An immutable sequence of tokenised pairs; each is put together when it is asked for.

    Args:
        pairs: in order; ``pair.index`` must be its place.
    """

    def __init__(self, pairs: Iterable[TokenizedPair] = ()) -> None:
        tokens, ends = array("i"), array("q", [0])
        self._scores: list[tuple[float | None, float | None]] = []
        self._origins: list[str] = []
        for place, pair in enumerate(pairs):
            if pair.index != place:
                raise ValueError(f"pair {pair.origin} has index {pair.index} at place {place}")
            for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
                tokens.extend(ids)
                ends.append(len(tokens))
            self._scores.append((pair.score_chosen, pair.score_rejected))
            self._origins.append(pair.origin)
        self._tokens = np.frombuffer(tokens, dtype=np.int32) if tokens else np.zeros(0, np.int32)
        self._ends = np.frombuffer(ends, dtype=np.int64)
        self.has_scores = bool(self._scores) and all(None not in both for both in self._scores)

    def __len__(self) -> int:
        return len(self._origins)

    @overload
    def __getitem__(self, place: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, place: slice) -> list[TokenizedPair]: ...
    def __getitem__(self, place: int | slice) -> TokenizedPair | list[TokenizedPair]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        index = range(len(self))[place]  # negative places, and IndexError past the end
        start, prompt, chosen, rejected = (int(end) for end in self._ends[3 * index : 3 * index + 4])
        return TokenizedPair(
            prompt_ids=self._tokens[start:prompt].tolist(),
            chosen_ids=self._tokens[prompt:chosen].tolist(),
            rejected_ids=self._tokens[chosen:rejected].tolist(),
            score_chosen=self._scores[index][0],
            score_rejected=self._scores[index][1],
            index=index,
            origin=self._origins[index],
        )

    def lengths(self) -> np.ndarray:
        """Tokens of prompt, chosen and rejected response: integers of shape ``(pairs, 3)``."""
        return np.diff(self._ends).reshape(-1, 3)

    def origin(self, index: int) -> str:
        """Where the pair at ``index`` comes from."""
        return self._origins[index]
