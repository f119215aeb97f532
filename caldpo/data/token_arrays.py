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
        scores, labels = array("d"), array("b")
        self._origins: list[str] = []
        for place, pair in enumerate(pairs):
            if pair.index != place:
                raise ValueError(f"pair {pair.origin} has index {pair.index} at place {place}")
            for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
                tokens.extend(ids)
                ends.append(len(tokens))
            scores.extend(math.nan if score is None else score for score in (pair.score_chosen, pair.score_rejected))
            labels.append(-1 if pair.label is None else pair.label)
            self._origins.append(pair.origin)
        self._tokens = np.frombuffer(tokens, dtype=np.int32) if tokens else np.zeros(0, np.int32)
        self._ends = np.frombuffer(ends, dtype=np.int64)
        self._scores = np.array(scores, dtype=np.float64).reshape(-1, 2)  # NaN where there is none
        self._labels = np.array(labels, dtype=np.int8)  # 1 and 0 of unpaired rows, -1 of pairs
        self.has_scores = self._all_scored()

    @classmethod
    def of_arrays(cls, tokens: np.ndarray, ends: np.ndarray, sources: StoredPairs) -> TokenizedPairs:
        """Make pairs of :meth:`arrays`, with scores and origins of the source pairs."""
        if len(ends) != 3 * len(sources) + 1 or ends[-1] != len(tokens):
            raise ValueError(f"{len(sources)} pairs and {len(tokens)} tokens do not go with {len(ends)} ends")
        made = cls()
        made._tokens, made._ends = tokens.astype(np.int32, copy=False), ends.astype(np.int64, copy=False)
        made._scores, made._origins, made._labels = sources.scores(), sources.origins(), sources.labels()
        made.has_scores = made._all_scored()
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
            label=None if self._labels[index] < 0 else bool(self._labels[index]),
        )

    @property
    def is_unpaired(self) -> bool:
        """Whether rows have one response and a label."""
        return bool((self._labels >= 0).any())

    def present(self) -> np.ndarray:
        """Tell which of chosen and rejected response each row has: booleans of shape ``(pairs, 2)``."""
        return np.stack([self._labels != 0, self._labels != 1], axis=1)

    def _all_scored(self) -> bool:
        return len(self) > 0 and not bool(np.isnan(self._scores)[self.present()].any())

    def lengths(self) -> np.ndarray:
        """Return the tokens of prompt, chosen and rejected response: integers of shape ``(pairs, 3)``."""
        return np.diff(self._ends).reshape(-1, 3)

    def digest(self) -> str:
        """Return the SHA-256 of all tokens, ends and labels: the same for the same pairs in the same order."""
        content = hashlib.sha256(self._ends.astype("<i8").tobytes())
        content.update(self._tokens.astype("<i4").tobytes())
        if self.is_unpaired:
            content.update(self._labels.tobytes())
        return content.hexdigest()

    def scores_digest(self) -> str:
        """Return the SHA-256 of the true rewards of all pairs, which losses and metrics read besides the tokens."""
        scores = [[_score(value) for value in both] for both in self._scores]
        return hashlib.sha256(json.dumps(scores).encode()).hexdigest()

    def origin(self, index: int) -> str:
        return self._origins[index]


def _score(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
