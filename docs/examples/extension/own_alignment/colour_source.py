"""Questions about colours: a generated source of pairs whose true reward is known."""

from __future__ import annotations

import random
from collections.abc import Iterator

from caldpo.config.bounds import NonNegativeInt, PositiveInt
from caldpo.config.signatures import validated
from caldpo.data.raw_row import RawRow, RewardSource
from caldpo.errors import CaldpoError
from own_alignment.colour_reward import COLOURS, reward


class ColourQuestions(RewardSource):
    """Pairs of a short right answer and an evasive one, scored by the true reward.

    A source without a known reward derives from ``PairSource`` and leaves ``reward`` out.

    Args:
        train_pairs, test_pairs: pairs of the splits ``train`` and ``test``.
        seed: of the questions.
    """

    name = "colour questions"

    @validated
    def __init__(self, train_pairs: PositiveInt, test_pairs: PositiveInt, seed: NonNegativeInt = 0) -> None:
        self.sizes, self.seed = {"train": train_pairs, "test": test_pairs}, seed

    def rows(self, split: str) -> Iterator[RawRow]:
        """Yield rows in any format of docs/data.md, each with where it is from."""
        if split not in self.sizes:
            raise CaldpoError(f"no such split: there are {', '.join(self.sizes)}", key=split)
        rng = random.Random(f"{self.seed} {split}")
        for number in range(self.sizes[split]):
            thing = rng.choice(sorted(COLOURS))
            prompt = f"What colour is {thing} {number} of the {split} set?"  # no prompt is in two splits
            chosen, rejected = f" {rng.choice(COLOURS[thing])}.", f" I have never seen one, said {rng.choice('ABC')}."
            scores = {"score_chosen": reward(prompt, chosen), "score_rejected": reward(prompt, rejected)}
            yield RawRow(f"{split}[{number}]", {"prompt": prompt, "chosen": chosen, "rejected": rejected, **scores})

    def reward(self, prompt: str, response: str) -> float:
        return reward(prompt, response)
