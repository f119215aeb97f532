"""A bad number is answered with what the number means: its unit, as the yaml of the option says it."""

from __future__ import annotations

from typing import Literal

import pytest

from caldpo.config.bounds import Finite, FolderName, PositiveInt
from caldpo.config.value_checks import is_quantity
from caldpo.config.yaml_comments import meaning


@pytest.mark.parametrize(
    ("key", "target", "says"),
    [
        ("seed", None, "of the order of the data (and of dropout, where there is any)"),  # beside it, at the top level
        ("data.max_length", None, "tokens of a prompt and its longer response together"),  # above it, to a semicolon
        (
            "data.source.reward_spread",
            "caldpo.data.sources.tabular_pairs.TabularPairs",
            "standard deviation of the rewards",
        ),
        ("callbacks.samples.max_new_tokens", None, "longest response, tokens"),  # nested
        ("model.hidden_size", "caldpo.models.random_init.RandomModel", "width of the residual stream"),  # _global_
        ("data.source.seed", "caldpo.data.sources.imdb.ImdbSentiment", "of prompt lengths, sampling and drawn labels"),
        ("data.nothing", None, None),
        ("nothing.at_all", None, None),
    ],
)
def test_meaning(key: str, target: str | None, says: str | None) -> None:
    assert meaning(key, target) == says


def test_the_target_tells_which_of_several_files_is_meant() -> None:
    """``beta`` of IPO is per token, that of DPO is not."""
    assert meaning("loss.beta", "caldpo.losses.ipo.IPO") != meaning("loss.beta", "caldpo.losses.dpo.DPO")


@pytest.mark.parametrize(
    ("annotation", "answer"),
    [
        (int, True),
        (PositiveInt, True),
        (Finite | None, True),
        (Literal["last"] | PositiveInt, True),
        (str, False),
        (bool, False),
        (FolderName, False),
        (Literal["a", "b"] | None, False),
    ],
)
def test_quantities_are_what_has_a_unit(annotation: object, answer: bool) -> None:
    assert is_quantity(annotation) is answer
