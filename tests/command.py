"""Runs ``caldpo.train`` in the test's own process, from the current folder."""

from __future__ import annotations

import pytest

SIDES = ("chosen", "rejected")
# a model of random weights, with tokenizer and pairs in the current folder
RANDOM_MODEL = (
    "model=random",
    "model.tokenizer=tokenizer",
    "model.hidden_size=16",
    "data=local",
    "data.train=pairs.jsonl",
    "data.pairs_per_batch=6",
)


def train(*overrides: str, fails: int | None = None) -> None:
    """Run ``caldpo.train`` in this process, from the current folder."""
    from caldpo.train import main

    if fails is None:
        main(list(overrides))
    else:
        with pytest.raises(SystemExit) as stopped:
            main(list(overrides))
        assert stopped.value.code == fails
