"""Runs ``caldpo.train`` in the test's own process, from the current folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

SIDES = ("chosen", "rejected")
# a model of random weights, with tokenizer and pairs in the current folder
RANDOM_MODEL = (
    "model=random",
    "model.tokenizer=tokenizer",
    "model.hidden_size=16",
    "data=local",
    "data.train=pairs.jsonl",
    "data.micro_batch_size=6",
)


def train(*overrides: str, fails: int | None = None) -> None:
    """Run ``caldpo.train`` in this process, from the current folder."""
    from caldpo.train import main

    call(main, overrides, fails)


def call(main: Callable[[list[str]], None], arguments: Sequence[str], fails: int | None) -> None:
    """Run a command in this process; ``fails`` is the exit code that it has to stop with."""
    if fails is None:
        main(list(arguments))
    else:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        assert stopped.value.code == fails
