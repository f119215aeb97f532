"""Best-of-n against the same samples scored one at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from caldpo.callbacks.best_of_n import BestOfN, picked
from caldpo.metric_definitions import BEST_OF_N
from caldpo.models.sampling import reference_seed
from tests.callbacks.oracle_data import OracleData, make_module, naive_logprob, reward, scored_pairs, words
from tests.helpers.tiny import sample_responses

SAMPLING: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0}
PROMPTS, SEED = 6, 3


@pytest.mark.parametrize("n", [1, 4])
def test_the_best_of_the_references_samples(n: int) -> None:
    module, data = make_module(), OracleData(reward)
    found = BestOfN(PROMPTS, n, seed=SEED, **SAMPLING).score(data, module)  # type: ignore[arg-type]

    assert {f"best_of_n/{name}" for name in found} == {metric.name for metric in BEST_OF_N}
    prompts = [pair.prompt_ids for pair in scored_pairs()[::2][:PROMPTS] for _ in range(n)]
    drawn = sample_responses(module.reference.model, module.tokenizer, prompts, seed=reference_seed(SEED), **SAMPLING)
    best, liked = [], []
    for i in range(0, len(drawn), n):
        true = [reward(words(prompts[i]), words(ids)) for ids in drawn[i : i + n]]
        implicit = [
            naive_logprob(module.policy, prompts[i], ids) - naive_logprob(module.reference.model, prompts[i], ids)
            for ids in drawn[i : i + n]
        ]
        best.append(max(true))
        liked.append(true[int(np.argmax(implicit))])
    assert found["reward"] == pytest.approx(np.mean(best))
    assert found["implicit_pick_reward"] == pytest.approx(np.mean(liked))
    assert found["kl_bound"] == pytest.approx(math.log(n) - (n - 1) / n)
    if n > 1:
        assert found["reward"] > found["implicit_pick_reward"]


def test_the_bound_is_the_kl_where_all_responses_differ() -> None:
    """Best-of-n draws the k-th best of m equally likely responses with probability (k^n - (k - 1)^n) / m^n."""
    m, n = 20_000, 4
    ranks = np.arange(1, m + 1) / m
    best = ranks**n - (ranks - 1 / m) ** n
    assert (best * np.log(best * m)).sum() == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-3)


def test_of_equally_good_ones_the_first_is_picked() -> None:
    rewards, by = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.0, 5.0, 7.0])
    assert picked(rewards, by=by, n=2) == 2.5
