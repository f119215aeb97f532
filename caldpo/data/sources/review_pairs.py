"""Generate preference pairs of the embedded reviews environment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from caldpo.config.bounds import NonNegativeInt, Positive, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.raw_row import RawRow, RewardSource
from caldpo.environments.reviews.pair_sampling import sample_pairs
from caldpo.environments.reviews.review_prompts import TITLES
from caldpo.environments.reviews.review_reward import reward
from caldpo.errors import CaldpoError


@validated
@dataclass(eq=False)
class ReviewPairs(RewardSource):
    """Pairs of reviews, labelled from a known true reward; see ``caldpo.environments.reviews``.

    Args:
        train_pairs, test_pairs: pairs of the splits ``train`` and ``test``, each with its own prompt. No
            title of a test prompt occurs in a training prompt, whatever the seeds.
        label_sharpness: P(chosen is better) = sigmoid(sharpness x reward gap); None always prefers the better.
        seed: of prompts, responses and labels.
    """

    name = "reviews"

    train_pairs: PositiveInt
    test_pairs: PositiveInt
    label_sharpness: Positive | None
    seed: NonNegativeInt

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield the pairs of ``train`` or ``test``, text with the scores of both responses."""
        if split not in TITLES:
            raise CaldpoError(f"no such split: the reviews have {' and '.join(TITLES)}", key=split)
        count = self.train_pairs if split == "train" else self.test_pairs
        pairs = sample_pairs(split, count, seed=self.seed, sharpness=self.label_sharpness)
        return (RawRow(f"{split}[{i}]", row) for i, row in enumerate(pairs))

    def reward(self, prompt: str, response: str) -> float:
        """Return the true reward of any response, in standard deviations of the data's responses."""
        return reward(prompt, response)
