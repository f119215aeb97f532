"""Hold the tokenised pairs of a split in flat arrays.

Python lists take about 36 bytes a token (2 GB for the 61,135 pairs of UltraFeedback), and every data-loading worker
copies them as it counts references. Flat arrays take 4 bytes a token and are shared.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from caldpo.data.pair import TokenizedPair
from caldpo.data.stored_pairs import StoredPairs


class TokenizedPairs(Sequence[TokenizedPair]):
    """An immutable sequence of tokenised pairs, each built on access; ``pair.index`` must be its position."""

    def __init__(self, pairs: Iterable[TokenizedPair] = ()) -> None:
        tokens, ends = array("i"), array("q", [0])
        scores = array("d")
        self._origins: list[str] = []
        for place, pair in enumerate(pairs):
            if pair.index != place:
                raise ValueError(f"pair {pair.origin} has index {pair.index} at place {place}")
            for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
                tokens.extend(ids)
                ends.append(len(tokens))
            scores.extend(math.nan if score is None else score for score in (pair.score_chosen, pair.score_rejected))
            self._origins.append(pair.origin)
        self._tokens = np.frombuffer(tokens, dtype=np.int32) if tokens else np.zeros(0, np.int32)
        self._ends = np.frombuffer(ends, dtype=np.int64)
        self._scores = np.array(scores, dtype=np.float64).reshape(-1, 2)  # NaN where there is none
        self.has_scores = len(self._scores) > 0 and not bool(np.isnan(self._scores).any())

    @classmethod
    def of_arrays(cls, tokens: np.ndarray, ends: np.ndarray, sources: StoredPairs) -> TokenizedPairs:
        """Make pairs of :meth:`arrays`, with scores and origins of the source pairs."""
        if len(ends) != 3 * len(sources) + 1 or ends[-1] != len(tokens):
            raise ValueError(f"{len(sources)} pairs and {len(tokens)} tokens do not go with {len(ends)} ends")
        made = cls()
        made._tokens, made._ends = tokens.astype(np.int32, copy=False), ends.astype(np.int64, copy=False)
        made._scores, made._origins = sources.scores(), sources.origins()
        made.has_scores = len(sources) > 0 and not bool(np.isnan(made._scores).any())
        return made

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all tokens in a row (int32), and the end of each prompt, chosen and rejected response (int64)."""
        return self._tokens, self._ends

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
            score_chosen=_score(self._scores[index, 0]),
            score_rejected=_score(self._scores[index, 1]),
            index=index,
            origin=self._origins[index],
        )

    def lengths(self) -> np.ndarray:
        """Return the tokens of prompt, chosen and rejected response: integers of shape ``(pairs, 3)``."""
        return np.diff(self._ends).reshape(-1, 3)

    def digest(self) -> str:
        """Return the SHA-256 of all tokens and ends: the same for the same pairs in the same order."""
        content = hashlib.sha256(self._ends.astype("<i8").tobytes())
        content.update(self._tokens.astype("<i4").tobytes())
        return content.hexdigest()

    def scores_digest(self) -> str:
        """Return the SHA-256 of the true rewards of all pairs, which losses and metrics read besides the tokens."""
        scores = [[_score(value) for value in both] for both in self._scores]
        return hashlib.sha256(json.dumps(scores).encode()).hexdigest()

    def origin(self, index: int) -> str:
        return self._origins[index]


def _score(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
