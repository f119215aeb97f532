"""Sample preference pairs of an environment of texts: two responses to a prompt, labelled by their true rewards.

Pairs come in blocks. The first n pairs of a split are the same whatever n is.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import Any

from caldpo.environments.bradley_terry import labelled_row
from caldpo.environments.text_environment import Split, require_prompts
from caldpo.environments.text_environments import TEXT_ENVIRONMENTS

BLOCK: dict[Split, int] = {"train": 1600, "validation": 256, "test": 256}
"""Pairs that are drawn together."""

Row = dict[str, Any]
Responder = Callable[[Sequence[str]], list[tuple[str, str] | None]]
"""Gives each prompt two responses with different rewards, or None where it finds none; the same ones at each call."""


@dataclass(frozen=True)
class PairRecipe:
    """What determines the pairs of all splits.

    Attributes:
        environment: a name of ``TEXT_ENVIRONMENTS``.
        seed: of prompts, responses and labels.
        sharpness: of :func:`caldpo.environments.bradley_terry.preference_probability`.
        label_noise: share of the labels that is flipped after that, in training and validation. A pair that is
            flipped at one share is flipped at every larger one.
        shifted: training prompts are of another distribution than the held-out ones.
    """

    environment: str
    seed: int
    sharpness: float | None
    label_noise: float = 0.0
    shifted: bool = False


def sample_pairs(recipe: PairRecipe, split: Split, number: int, responder: Responder | None = None) -> Iterator[Row]:
    """Yield rows ``prompt, chosen, rejected, score_chosen, score_rejected``, each with its own prompt.

    Scores are true rewards, so with noisy labels the chosen one's can be the lower. The two rewards of a pair
    always differ: a tie says nothing about quality.

    Prompts of two splits never meet, whatever the seed; splits draw independently. Without ``responder`` the
    environment's own pool writes (off-policy).

    Raises:
        CaldpoError: the split has fewer different prompts, or ``responder`` answers too few of them.
    """
    environment = TEXT_ENVIRONMENTS[recipe.environment]
    available = environment.prompt_count(split, shifted=recipe.shifted and split == "train")
    require_prompts(recipe.environment, split, number, available)
    clean = replace(recipe, label_noise=0.0)
    rows = _rows(clean, split, number, responder)
    require_prompts(recipe.environment, split, number, len(rows))
    noise = random.Random(f"{recipe.seed}/{split}/label noise")
    flip_rate = 0.0 if split == "test" else recipe.label_noise
    return (_flipped(row) if noise.random() < flip_rate else dict(row) for row in rows)


# the runs of a sweep that share a process share their pairs
@functools.lru_cache(maxsize=len(BLOCK))
def _rows(recipe: PairRecipe, split: Split, number: int, responder: Responder | None) -> tuple[Row, ...]:
    return tuple(islice(chain.from_iterable(_blocks(recipe, split, responder)), number))


def _blocks(recipe: PairRecipe, split: Split, responder: Responder | None) -> Iterator[list[Row]]:
    environment, shifted = TEXT_ENVIRONMENTS[recipe.environment], recipe.shifted and split == "train"
    available = environment.prompt_count(split, shifted=shifted)
    taken: set[str] = set()
    for index in count():
        size = min(BLOCK[split], available - len(taken))
        if not size:
            return
        rng = random.Random(f"{recipe.seed}/{split}/{index}" if index else f"{recipe.seed}/{split}")
        drawn = environment.sample_prompts(split, min(size + len(taken), available), rng, shifted=shifted)
        prompts = [prompt for prompt in drawn if str(prompt) not in taken][:size]
        texts = [str(prompt) for prompt in prompts]
        taken.update(texts)
        answers: Iterable[tuple[str, str] | None]
        if responder is None:
            # response and label of a pair follow each other in the generator's stream
            answers = (environment.two_responses(prompt, rng) for prompt in prompts)
        else:
            answers = responder(texts)
        rows: list[Row] = []
        for text, pair in zip(texts, answers, strict=True):
            if pair is not None:
                first, second = ((response, environment.reward(text, response)) for response in pair)
                rows.append(labelled_row(text, first, second, recipe.sharpness, rng))
        yield rows


def _flipped(row: Row) -> Row:
    sides = {"chosen": "rejected", "rejected": "chosen"}
    sides |= {f"score_{side}": f"score_{other}" for side, other in sides.items()}
    return {name: row[sides.get(name, name)] for name in row}
